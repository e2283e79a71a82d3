"""torch.nn's recurrent layers with few bits: input and hidden state, and the weights on both.

The steps of time are unrolled here, since torch's fused kernels take no operand that is quantized
from step to step. Gates, cell state and sums stay in full precision.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.precision import in_fp32
from quant.functional import initial_step
from quant.modules import Quantized, Recipe, apply
from quant.quantizer import Quantizer

# From x·W_ih + b_ih and h·W_hh + b_hh (B, gates·H) and the state (h, and c where there is one) to
# the next state.
Cell = Callable[[Tensor, Tensor, Sequence[Tensor]], list[Tensor]]


def lstm_cell(from_input: Tensor, from_hidden: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
    """(h, c) of Hochreiter and Schmidhuber's cell as torch.nn.LSTM has it."""
    i, f, g, o = (from_input + from_hidden).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return [o.sigmoid() * c.tanh(), c]


def gru_cell(from_input: Tensor, from_hidden: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
    """h of torch.nn.GRU's cell."""
    (ri, zi, ni), (rh, zh, nh) = from_input.chunk(3, -1), from_hidden.chunk(3, -1)
    z, n = (zi + zh).sigmoid(), (ni + (ri + rh).sigmoid() * nh).tanh()
    return [(1 - z) * n + z * state[0]]


def tanh_cell(from_input: Tensor, from_hidden: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
    """h of torch.nn.RNN's cell."""
    return [(from_input + from_hidden).tanh()]


def relu_cell(from_input: Tensor, from_hidden: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
    """h of torch.nn.RNN's cell with a ReLU."""
    return [(from_input + from_hidden).relu()]


CELLS: dict[str, Cell] = {
    "LSTM": lstm_cell,
    "GRU": gru_cell,
    "RNN_TANH": tanh_cell,
    "RNN_RELU": relu_cell,
}


class _Recurrent(Quantized):
    """What the sequence layers share; ``suffix`` is torch's: ``_l0``, ``_l0_reverse``, …"""

    mode: str
    num_layers: int
    bidirectional: bool
    batch_first: bool
    dropout: float
    hidden_size: int
    proj_size: int

    def equip(self, recipe: Recipe) -> None:
        """Quantizers for each direction of each layer."""
        inside = recipe.inside()
        for suffix in self._suffixes():
            given = recipe.of_input() if suffix.startswith("_l0") else inside.of_inner()
            setattr(self, f"input{suffix}_quantizer", given)
            setattr(self, f"hidden{suffix}_quantizer", inside.of_inner())
            if self.proj_size:
                setattr(self, f"projected{suffix}_quantizer", inside.of_inner())
        for name in self._weights():
            of = recipe if name.startswith("weight_ih_l0") else inside
            setattr(self, f"{name}_quantizer", of.of_weight(self._parameters[name]))

    def quantized_weights(self) -> dict[str, str]:
        """The matrices."""
        return {
            name: f"{name}_quantizer"
            for name in self._weights()
            if self._modules.get(f"{name}_quantizer") is not None
        }

    def forward(
        self,
        input: Tensor,
        hx: Tensor | tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        """(B, T, I) or, batch second, (T, B, I), or (T, I) → outputs of each step, last states."""
        if isinstance(input, nn.utils.rnn.PackedSequence):
            raise TypeError(
                "a quantized recurrent layer takes padded sequences (pad_packed_sequence), "
                "no PackedSequence"
            )
        is_batched = input.dim() == 3
        x = input if is_batched else input.unsqueeze(1)  # (T, B, I) from here on
        x = x.transpose(0, 1) if is_batched and self.batch_first else x
        begin = self._begin(x, hx, is_batched)
        ends: list[list[Tensor]] = []
        directions = 2 if self.bidirectional else 1
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                state = [part[index] for part in begin]
                output, end = self._run(x, state, self._suffixes()[index], direction == 1)
                outputs.append(output)
                ends.append(end)
            x = torch.cat(outputs, -1)
            if layer < self.num_layers - 1:
                x = F.dropout(x, self.dropout, self.training)
        last = [torch.stack(parts) for parts in zip(*ends, strict=True)]
        if not is_batched:
            x, last = x.squeeze(1), [part.squeeze(1) for part in last]
        elif self.batch_first:
            x = x.transpose(0, 1)
        return x, (last[0], last[1]) if self.mode == "LSTM" else last[0]

    def _run(
        self, x: Tensor, state: list[Tensor], suffix: str, is_reverse: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """One direction of one layer over (T, B, I): outputs (T, B, H) and the last state."""
        cell, hidden = CELLS[self.mode], self._quantizer(f"hidden{suffix}")
        is_unset = hidden is not None and self.training and not hidden.initialised
        used = None if is_unset else hidden
        w_ih, w_hh = (self._weight(f"weight_{kind}{suffix}") for kind in ("ih", "hh"))
        b_ih, b_hh = (self._parameters.get(f"bias_{kind}{suffix}") for kind in ("ih", "hh"))
        projection = self._weight(f"weight_hr{suffix}") if self.proj_size else None
        from_input = F.linear(apply(self._quantizer(f"input{suffix}"), x), w_ih, b_ih)
        steps = from_input.unbind(0)
        outputs = []
        for step in reversed(steps) if is_reverse else steps:
            state = cell(step, F.linear(apply(used, state[0]), w_hh, b_hh), state)
            if projection is not None:
                h = apply(self._quantizer(f"projected{suffix}"), state[0])
                state[0] = F.linear(h, projection)
            outputs.append(state[0])
        output = torch.stack(outputs[::-1] if is_reverse else outputs)
        if is_unset and hidden is not None:
            # From all steps of the first batch: the state begins with zeros, and small.
            hidden.initialise(initial_step(in_fp32(output), hidden.qp))
        return output, state

    def _begin(
        self, x: Tensor, hx: Tensor | tuple[Tensor, Tensor] | None, is_batched: bool
    ) -> list[Tensor]:
        """States (layers · directions, B, H) at the start: those given, or zeros."""
        if hx is None:
            count = len(self._suffixes())
            sizes = [self.proj_size or self.hidden_size, self.hidden_size]
            zeros = [x.new_zeros(count, x.shape[1], size) for size in sizes]
            return zeros if self.mode == "LSTM" else zeros[:1]
        given = list(hx) if isinstance(hx, tuple) else [hx]
        return given if is_batched else [part.unsqueeze(1) for part in given]

    def _weight(self, name: str) -> Tensor:
        weight = self._parameters[name]
        assert weight is not None
        return apply(self._quantizer(name), weight)

    def _weights(self) -> list[str]:
        return [name for name in self._parameters if name.startswith("weight_")]

    def _suffixes(self) -> list[str]:
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [f"_l{layer}{end}" for layer in range(self.num_layers) for end in directions]

    def _quantizer(self, name: str) -> Quantizer | None:
        return self._modules.get(f"{name}_quantizer")  # type: ignore[return-value]


class QuantLSTM(_Recurrent, nn.LSTM):  # type: ignore[misc]
    """LSTM with quantized matrices, inputs and hidden states."""


class QuantGRU(_Recurrent, nn.GRU):  # type: ignore[misc]
    """GRU with quantized matrices, inputs and hidden states."""


class QuantRNN(_Recurrent, nn.RNN):  # type: ignore[misc]
    """RNN with quantized matrices, inputs and hidden states."""


class _OneCell(Quantized):
    """What the layers of one step share."""

    input_quantizer: Quantizer | None
    hidden_quantizer: Quantizer | None

    def equip(self, recipe: Recipe) -> None:
        """Quantizers for both operands of both products."""
        inside = recipe.inside()
        self.input_quantizer, self.hidden_quantizer = recipe.of_input(), inside.of_inner()
        for name, of in (("weight_ih", recipe), ("weight_hh", inside)):
            setattr(self, f"{name}_quantizer", of.of_weight(self._parameters[name]))

    def quantized_weights(self) -> dict[str, str]:
        """Both matrices."""
        return {
            name: f"{name}_quantizer"
            for name in ("weight_ih", "weight_hh")
            if self._modules.get(f"{name}_quantizer") is not None
        }

    def _step(self, cell: Cell, x: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
        w_ih, w_hh = (
            apply(self._modules.get(f"{name}_quantizer"), self._parameters[name])  # type: ignore[arg-type]
            for name in ("weight_ih", "weight_hh")
        )
        from_input = F.linear(apply(self.input_quantizer, x), w_ih, self._parameters["bias_ih"])
        hidden = apply(self.hidden_quantizer, state[0])
        return cell(from_input, F.linear(hidden, w_hh, self._parameters["bias_hh"]), state)


class QuantLSTMCell(_OneCell, nn.LSTMCell):
    """LSTMCell with quantized matrices, inputs and hidden states."""

    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(B, I) and both states (B, H) → both states."""
        zeros = input.new_zeros(*input.shape[:-1], self.hidden_size)
        h, c = self._step(lstm_cell, input, hx or (zeros, zeros))
        return h, c


class QuantGRUCell(_OneCell, nn.GRUCell):
    """GRUCell with quantized matrices, inputs and hidden states."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """(B, I) and the state (B, H) → the state."""
        zeros = input.new_zeros(*input.shape[:-1], self.hidden_size)
        return self._step(gru_cell, input, [zeros if hx is None else hx])[0]


class QuantRNNCell(_OneCell, nn.RNNCell):
    """RNNCell with quantized matrices, inputs and hidden states."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """(B, I) and the state (B, H) → the state."""
        zeros = input.new_zeros(*input.shape[:-1], self.hidden_size)
        cell = tanh_cell if self.nonlinearity == "tanh" else relu_cell
        return self._step(cell, input, [zeros if hx is None else hx])[0]
