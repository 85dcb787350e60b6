"""training/ema.py: the average is the plain one, is kept in eval mode, and stands in for the model's own weights."""

import pytest
import torch
from torch import nn

from training.ema import MovingAverage


class Model(nn.Module):
    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double()
        self.head = nn.Linear(4, 2).double()

    def forward(self, x):
        return self.head(self.encoder(x))


def change(model: Model, seed: int) -> None:
    """New weights, and statistics moved by a batch in training."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.train()(torch.randn(5, 3, dtype=torch.float64))


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


@pytest.mark.parametrize("decay", [0.3, 0.9])
def test_the_average_is_the_plain_one_with_batchnorms_statistics_and_counters(decay):
    """In float64 to 1e-12. The first steps go by fewer: their decay is n / (n + 9) where that is lower."""
    model = Model()
    averaged, expected = MovingAverage(model, ["encoder"], decay), tensors(model.encoder)
    for step in range(1, 13):
        change(model, step)
        averaged.update()
        kept = min(decay, step / (step + 9))
        for key, value in model.encoder.state_dict().items():
            is_counter = not value.is_floating_point()
            expected[key] = value.clone() if is_counter else kept * expected[key] + (1 - kept) * value
    for key, value in averaged.modules["encoder"].state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-12, msg=key)
    assert not torch.allclose(expected["1.running_mean"], model.encoder[1].running_mean)


def test_in_the_model_the_averages_stand_for_its_own_parts_and_only_there():
    model = Model()
    averaged, own, head = MovingAverage(model, ["encoder"], 0.5), model.encoder, model.head
    change(model, 1)
    averaged.update()
    images = torch.randn(6, 3, dtype=torch.float64)
    with averaged.in_the_model() as inside:
        assert inside is model and model.head is head
        given = model.eval()(images)
        assert list(model.state_dict()) == list(Model().state_dict())  # the order of keys, too
        model.train()  # as a loop may that goes on training
    assert model.encoder is own and not averaged.modules["encoder"].training
    torch.testing.assert_close(given, head(averaged.modules["encoder"](images)))
    assert not torch.allclose(given, model.eval()(images))


def test_the_average_takes_no_gradients_and_is_given_back_after_an_error():
    model = Model()
    averaged, own = MovingAverage(model, ["encoder", "head"], 0.5), model.encoder
    assert not any(parameter.requires_grad for part in averaged.modules.values() for parameter in part.parameters())
    with pytest.raises(KeyError), averaged.in_the_model():
        raise KeyError
    assert model.encoder is own and all(parameter.requires_grad for parameter in model.parameters())


def test_a_saved_average_goes_on_to_the_bit_and_without_one_it_begins_at_the_model():
    models = [Model(), Model()]
    whole, resumed = (MovingAverage(model, ["encoder"], 0.9) for model in models)
    for step in range(1, 4):
        change(models[0], step)
        whole.update()
    models[1].load_state_dict(models[0].state_dict())
    resumed.load_state_dict(whole.state_dict())
    for model, averaged in zip(models, (whole, resumed), strict=True):
        change(model, 9)
        averaged.update()
    states = [tensors(averaged.modules["encoder"]) for averaged in (whole, resumed)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0]) and resumed.num_updates == 4
    resumed.load_state_dict(None)
    assert resumed.num_updates == 0
    assert torch.equal(resumed.modules["encoder"][0].weight, models[1].encoder[0].weight)
