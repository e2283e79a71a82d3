"""Where the bytes of an uplink go: fp32, and 4-bit codes, part by part.

    python -m benchmarks.wire [--bits 4] [--model cnn]

The packed bytes are those of arrays that were really packed by the client's encoder.
"""

import argparse
from collections import Counter

import torch

from app import experiment
from app.config.composition import compose
from quant.layers import quantized_layers, weight_quantizers
from strategies.oqfl import OQFL, encode_weights


def part(name: str, weights: dict[str, int], bits: int) -> str:
    if name in weights:
        return f"weights at {weights[name]} bits" + ("" if weights[name] == bits else " (edge)")
    if "_quantizer." in name:
        return "steps and flags"
    return "biases and normalisation, fp32"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--model", default="cnn")
    chosen = parser.parse_args()
    shape = ["data=digits", f"model={chosen.model}", "data.shape=[1,28,28]"]
    overrides = [*shape, "strategy=oqfl", f"quant.bits={chosen.bits}", "quant.wire=codes"]
    config = experiment.resolve(compose(overrides))
    strategy = experiment.strategy(config)
    assert isinstance(strategy, OQFL)
    model = experiment.prepare(config, strategy)
    assert list(quantized_layers(model))
    weights = {name: q.bits for name, q in weight_quantizers(model).items()}
    sent = encode_weights(model, torch.Generator().manual_seed(0))
    counts: Counter[str] = Counter()
    before: Counter[str] = Counter()
    state = model.state_dict()
    for name, tensor in sent.items():
        label = part(name, weights, chosen.bits)
        counts[label] += tensor.numel() * tensor.element_size()
        if "_quantizer." not in name:
            before[label] += state[name].numel() * state[name].element_size()
    print("| part | fp32 bytes | packed bytes |")
    print("|---|---|---|")
    for label in counts:
        print(f"| {label} | {before[label]:,} | {counts[label]:,} |")
    whole = sum(before.values())
    packed = sum(counts.values())
    print(f"| all | {whole:,} | {packed:,} (1/{whole / packed:.2f}) |")


if __name__ == "__main__":
    main()
