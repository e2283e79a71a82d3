"""One client's round of a method that cuts, with the server's half beside it or elsewhere."""

from conftest import SMALL, cut_network, settings_of

from app import experiment
from app.config.composition import compose
from strategies.client.simulated import train_simulated
from strategies.contract import ServerHalf, Streams, Task, Update


class OneClient:
    """Client 0 in round 1, of a small experiment in which it trains three batches."""

    def __init__(self, *overrides: str) -> None:
        self.overrides = (*SMALL, "train.max_batches=3", *overrides)
        config = experiment.resolve(compose(self.overrides))
        self.strategy = experiment.strategy(config)
        state = experiment.prepare(config, self.strategy).state_dict()
        self.arrays = {name: tensor.clone() for name, tensor in state.items()}
        settings = settings_of(self.strategy)
        self.device_names = cut_network(self.strategy).on_device(0)
        self.data = experiment.client_data(config, 0)
        self.task = Task(settings, Streams(0, 1, 0), len(self.data))
        self.client = experiment.method_class(config).client
        self.model = self.client.prepare(experiment.network(config), settings)

    def beside(self) -> Update:
        """As a simulation trains it; the arrays are of their own memory."""
        update = train_simulated(self.client, self.model, self.arrays, self.data, self.task)
        for name, tensor in update.arrays.items():
            update.arrays[name] = tensor.clone()
        return update

    def elsewhere(self, half: ServerHalf) -> Update:
        """Given the device's arrays alone."""
        device = {n: t for n, t in self.arrays.items() if n in self.device_names}
        return self.client.train(self.model, device, self.data, self.task, half)
