"""How learned steps should train: rules of the client and averages of the server, side by side.

    python -m benchmarks.steps [--clients 10] [--samples 1000] [--rounds 2] [--seeds 1]

FedAvg of `cnn` at 4 bits in one process, on Fashion-MNIST (in CUTBIT_DATA) at 14×14, means of 2×2,
five local epochs of SGD 0.1 with momentum 0.9. Accuracy of the first 2,000 test samples after each
round, in per cent. Local training is written out, because most rules are not those of
strategies/client/steps.py.
"""

import argparse
import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.table import table
from data import fashion_mnist
from models.cnn import CNN
from quant.layers import QuantSpec, quantize
from quant.quantizer import is_step

LR, MOMENTUM, BATCH, EPOCHS, TESTED = 0.1, 0.9, 32, 5, 2000
State = dict[str, Tensor]


@dataclass(frozen=True)
class Variant:
    """One way to train steps.

    Attributes:
        bits: of weights and activations.
        learn: whether steps train at all.
        momentum: of the steps' SGD.
        rate: of the steps' SGD, as a multiple of the weights'.
        most: factor by which one update changes a step at most.
        adam: rate of Adam on log s instead; 0 for SGD.
        average: of steps on the server: ``arithmetic`` or ``geometric``.
    """

    bits: int = 4
    learn: bool = True
    momentum: float = 0.0
    rate: float = 10.0
    most: float = 1.1
    adam: float = 0.0
    average: str = "geometric"


VARIANTS = {
    "fp32": Variant(bits=32),
    "fixed steps": Variant(learn=False),
    "momentum, factor 2, arithmetic mean": Variant(
        momentum=0.9, rate=1, most=2, average="arithmetic"
    ),
    "momentum, factor 2": Variant(momentum=0.9, rate=1, most=2),
    "factor 2": Variant(rate=1, most=2),
    "factor 1.2": Variant(rate=1, most=1.2),
    "factor 1.05": Variant(rate=1, most=1.05),
    "10 times the rate, factor 1.2": Variant(most=1.2),
    "10 times the rate, factor 1.1 (what oqfl does)": Variant(),
    "10 times the rate, factor 1.05": Variant(most=1.05),
    "Adam 0.01 on log s": Variant(adam=0.01, most=2),
}


class Steps:
    """The learned steps of a model, and how a variant updates them."""

    def __init__(self, model: nn.Module, variant: Variant) -> None:
        self.variant, self.count = variant, 0
        self.steps = [p for name, p in model.named_parameters() if is_step(name)]
        self.first = [torch.zeros_like(step) for step in self.steps]
        self.second = [torch.zeros_like(step) for step in self.steps]

    @torch.no_grad()
    def update(self) -> None:
        """One update from the gradients, which are cleared."""
        variant = self.variant
        self.count += 1
        for step, m, v in zip(self.steps, self.first, self.second, strict=True):
            gradient, step.grad = step.grad, None
            assert gradient is not None, "no weight of cnn begins with zeros"
            before = step.clone()
            if variant.adam:
                gradient = gradient * step  # of log s
                m.mul_(0.9).add_(gradient, alpha=0.1)
                v.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                unbiased = m / (1 - 0.9**self.count), v / (1 - 0.999**self.count)
                step.mul_((-variant.adam * unbiased[0] / (unbiased[1].sqrt() + 1e-12)).exp())
            else:
                m.mul_(variant.momentum).add_(gradient)
                step.sub_(variant.rate * LR * m)
            step.copy_(step.clamp(before / variant.most, before * variant.most))


def train(
    model: nn.Module, x: Tensor, y: Tensor, variant: Variant, generator: torch.Generator
) -> None:
    """One client's round, in place."""
    model.train()
    weights = [p for name, p in model.named_parameters() if not is_step(name)]
    optimizer = torch.optim.SGD(weights, LR, momentum=MOMENTUM, fused=True)
    steps = Steps(model, variant)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            loss = F.cross_entropy(model(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps.update()


def average(states: Sequence[State], variant: Variant) -> State:
    """The next global model, of clients with equally many samples."""
    new = {}
    for name in states[0]:
        values = torch.stack([state[name] for state in states])
        if not values.is_floating_point():
            new[name] = values.any(0)  # flags alone: group normalisation counts nothing
        elif is_step(name) and variant.average == "geometric":
            new[name] = values.double().log().mean(0).exp().to(values.dtype)
        else:
            new[name] = values.double().mean(0).to(values.dtype)
    return new


def accuracies(
    variant: Variant, arrays: Sequence[Tensor], clients: int, samples: int, rounds: int, seed: int
) -> list[float]:
    """Accuracy after each round, in per cent."""
    train_x, train_y, test_x, test_y = arrays
    torch.manual_seed(seed)
    model: nn.Module = CNN(input_shape=(1, 14, 14))
    spec = QuantSpec(variant.bits, variant.bits, learn_step=variant.learn)
    model = quantize(model, spec).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(train_x), generator=generator)[: clients * samples]
    found, state = [], copy.deepcopy(model.state_dict())
    for _ in range(rounds):
        trained = []
        for rows in chosen.view(clients, samples):
            model.load_state_dict(state)
            train(model, train_x[rows], train_y[rows], variant, generator)
            trained.append(copy.deepcopy(model.state_dict()))
        state = average(trained, variant)
        model.load_state_dict(state)
        model.eval()
        with torch.no_grad():
            right = model(test_x[:TESTED]).argmax(1) == test_y[:TESTED]
        found.append(100 * float(right.float().mean()))
    return found


def pictures(root: Path) -> list[Tensor]:
    """Fashion-MNIST at 14×14: inputs and classes to train on, and to test."""
    source = fashion_mnist.load(root)
    halve: Callable[[Tensor], Tensor] = lambda x: F.avg_pool2d(x, 2)  # noqa: E731
    return [halve(source.train_x), source.train_y, halve(source.test_x), source.test_y]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--samples", type=int, default=1000, help="of each client")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    arrays = pictures(Path(os.environ["CUTBIT_DATA"]))
    rows = []
    for name, variant in VARIANTS.items():
        runs = [
            accuracies(variant, arrays, args.clients, args.samples, args.rounds, seed)
            for seed in range(args.seeds)
        ]
        mean = sum(run[-1] for run in runs) / len(runs)
        each = "; ".join(" ".join(f"{value:.1f}" for value in run) for run in runs)
        rows.append([name, f"{mean:.2f}", each])
    print(table(["rule", "accuracy", "after each round, of each seed"], rows))


if __name__ == "__main__":
    main()
