"""Where the bytes of an uplink go: fp32, and 4-bit codes, part by part.

    python -m benchmarks.wire [--bits 4] [--model cnn]

The packed bytes are those of arrays that were really packed by the client's encoder.
"""

import argparse
from collections import Counter
from collections.abc import Sequence

import torch

from app import experiment
from app.config.composition import compose
from benchmarks.table import table
from quant.layers import quantized_layers, weight_quantizers
from strategies.codes import encode_weights


def part(name: str, weights: dict[str, int], bits: int) -> str:
    if name in weights:
        return f"weights at {weights[name]} bits" + ("" if weights[name] == bits else " (edge)")
    if "_quantizer." in name:
        return "steps and flags"
    return "biases and normalisation, fp32"


def measure(model_name: str, bits: int) -> tuple[Counter[str], Counter[str]]:
    """Return bytes as fp32 and packed, by part."""
    chosen = [f"model={model_name}", "data=mnist", "strategy=oqfl", f"quant.bits={bits}"]
    setup = experiment.resolve(compose([*chosen, "quant.wire=codes"]))
    network = experiment.network(setup)
    model = experiment.strategy(setup).prepare(network, setup.network.input_shape)
    assert list(quantized_layers(model))
    weights = {name: q.bits for name, q in weight_quantizers(model).items()}
    sent = encode_weights(model, torch.Generator().manual_seed(0))
    packed: Counter[str] = Counter()
    plain: Counter[str] = Counter()
    state = model.state_dict()
    for name, tensor in sent.items():
        label = part(name, weights, bits)
        packed[label] += tensor.numel() * tensor.element_size()
        if "_quantizer." not in name:
            plain[label] += state[name].numel() * state[name].element_size()
    return plain, packed


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--model", default="cnn")
    chosen = parser.parse_args(argv)
    plain, packed = measure(chosen.model, chosen.bits)
    rows = [(label, f"{plain[label]:,}", f"{packed[label]:,}") for label in packed]
    whole, sent = sum(plain.values()), sum(packed.values())
    rows.append(("all", f"{whole:,}", f"{sent:,} (1/{whole / sent:.2f})"))
    print(table(["part", "fp32 bytes", "packed bytes"], rows))


if __name__ == "__main__":
    main()
