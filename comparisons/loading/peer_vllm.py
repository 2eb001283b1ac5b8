"""Log probabilities of given tokens in vLLM, on the CPU: MODEL OUT ID,ID,...

OUT gets JSON: ln p of each token but the first, and the greedy continuation.
"""

import json
import os
import sys

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def main():
    from vllm import LLM, SamplingParams

    model, out, ids = sys.argv[1:4]
    ids = [int(i) for i in ids.split(",")]
    engine = LLM(model, max_model_len=256, enforce_eager=True, dtype="bfloat16")
    wanted = SamplingParams(max_tokens=16, temperature=0, prompt_logprobs=0)
    answer = engine.generate([{"prompt_token_ids": ids}], wanted)[0]
    rows = zip(ids[1:], answer.prompt_logprobs[1:])
    found = {
        "logprobs": [row[token].logprob for token, row in rows],
        "greedy": list(answer.outputs[0].token_ids),
    }
    with open(out, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
