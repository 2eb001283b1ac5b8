"""Log probabilities of all tokens in vLLM, on the CPU in bf16: MODEL OUT ID,ID,...

OUT gets f32 [T − 1, V]: what vLLM says of every token after each of the given ones but the last.
"""

import os
import sys
from array import array

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def main():
    from vllm import LLM, SamplingParams

    model, out, ids = sys.argv[1:4]
    ids = [int(i) for i in ids.split(",")]
    engine = LLM(model, max_model_len=256, enforce_eager=True, dtype="bfloat16", max_logprobs=-1)
    wanted = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=-1)
    answer = engine.generate([{"prompt_token_ids": ids}], wanted)[0]
    with open(out, "wb") as file:
        for row in answer.prompt_logprobs[1:]:
            array("f", (row[token].logprob for token in range(len(row)))).tofile(file)


if __name__ == "__main__":
    main()
