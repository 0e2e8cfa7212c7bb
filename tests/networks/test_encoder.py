"""Encoders: chosen from the shapes, replaced by a name or a factory, exact in both modes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.testing import assert_close
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.modules import set_recurrent_mode

from tests.training._helpers import MEMORIES
from torchrl_shm import VisualMatchEnv, WindEnv
from torchrl_shm.networks import (
    Convolution,
    Encoder,
    EnvSpecs,
    FourierEncoder,
    ImageEncoder,
    Layer,
    get_behavior,
    is_image,
    make_actor_critic,
    make_soft_actor_critic,
)
from torchrl_shm.networks.encoder import Rows, make_encoder
from torchrl_shm.training import LeanClipPPOLoss, RolloutCollector, check_ratio

SMALL = partial(VisualMatchEnv, frames=(2, 2, 3), image=True)
LARGE = torch.Size((84, 84, 3))


def make_specs(**entries: Any) -> EnvSpecs:
    return EnvSpecs(Composite(entries), Categorical(4), list(entries))


def encoder_of(specs: Any, **options: Any) -> Any:
    operator = make_actor_critic(specs, MEMORIES["shm"], embedding_size=8, **options)
    return find_encoder(operator)


def find_encoder(network: Any) -> Any:
    (layer,) = (x for x in network.modules() if isinstance(x, Layer) and "embedding" in x.out_keys)
    return layer.module


@pytest.mark.parametrize(
    ("shape", "image"),
    [
        ((5, 5, 3), True), ((3, 5, 5), True), ((84, 84, 3), True), ((4, 84, 84), True),
        ((96, 96, 1), True), ((12, 64, 48), True), ((5, 7, 4), True),
        # stacks
        ((2, 3, 84, 84), True), ((4, 96, 96, 3), True), ((4, 5, 5, 1), True),
        # as many channels or images as rows; sides of 4; other ranks; nothing
        ((5, 5, 5), False), ((4, 4, 3), False), ((84, 84), False), ((16, 16, 16, 3), False),
        ((2, 2, 3, 84, 84), False), ((0, 8, 8), False), ((0, 8, 8, 3), False), ((7,), False),
        ((), False),
    ],
)  # fmt: skip
def test_what_is_an_image(shape: tuple[int, ...], image: bool) -> None:
    assert is_image(torch.Size(shape)) == image


def test_vectors_are_read_as_ever() -> None:
    """One linear map, and no more random numbers than it takes."""
    torch.manual_seed(3)
    expected = nn.Linear(4, 8)
    after = torch.rand(())
    torch.manual_seed(3)
    found = make_encoder("auto", [torch.Size((2,))] * 2, [torch.float32] * 2, 8, None)
    assert torch.equal(torch.rand(()), after)
    assert type(found) is Encoder
    assert list(found.state_dict()) == ["linear.weight", "linear.bias"]
    assert torch.equal(found.linear.weight, expected.weight)
    x, y = torch.randn(2, 5, 2)
    assert torch.equal(found(x, y), torch.tanh(found.linear(torch.cat([x, y], -1))))


@pytest.mark.parametrize("shape", [(5, 5, 3), (3, 5, 5), (84, 84, 3), (3, 96, 96), (40, 17, 1)])
def test_rows_and_columns_keep_their_places(shape: tuple[int, ...]) -> None:
    """HWC and CHW give the same for the same picture, and a transposed one does not."""
    last = shape[2] < shape[0]
    net = Convolution(torch.Size(shape))
    image = torch.rand(2, *shape)
    other_shape = (shape[2], *shape[:2]) if last else (*shape[1:], shape[0])
    other = Convolution(torch.Size(other_shape))
    other.load_state_dict(net.state_dict())
    moved = image.movedim(-1, 1) if last else image.movedim(1, -1)
    assert net(image).shape == (2, net.size)
    assert_close(other(moved), net(image))
    sides = (1, 2) if last else (2, 3)
    assert not torch.allclose(net(image.flip(sides)), net(image), atol=1e-3)
    # from 84 sides are halved to 42, 21, 11 and 6
    assert net.size <= 32 * 64


@pytest.mark.parametrize("shape", [(4, 20, 24, 3), (4, 3, 20, 24)])
def test_images_of_a_stack_are_channels(shape: tuple[int, ...]) -> None:
    net = Convolution(torch.Size(shape))
    stack = torch.rand(2, *shape)
    channels_first = stack if shape[-1] == 24 else stack.movedim(-1, 2)
    one = Convolution(torch.Size((12, 20, 24)))
    one.load_state_dict(net.state_dict())
    assert torch.equal(net(stack), one(channels_first.reshape(2, 12, 20, 24)))


def test_gray_pictures_of_bytes() -> None:
    gray, table = torch.Size((20, 16)), torch.Size((20, 15))
    shapes = [gray, table, gray]
    dtypes = [torch.uint8, torch.uint8, torch.float32]
    encoder: Any = make_encoder("auto", shapes, dtypes, 8, None)
    assert set(encoder.encoder.convolutions) == {"0"}
    inputs = [
        torch.ones(2, 5, *shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)
    ]
    assert encoder(*inputs).shape == (2, 5, 8)
    inputs[0][1, 2, 3, 4] = 255
    changed = encoder(*inputs) != encoder(*(x * 0 + 1 for x in inputs))
    assert changed.any(-1).nonzero().tolist() == [[1, 2]]
    assert type(make_encoder("flat", shapes, dtypes, 8, None)) is Encoder
    with pytest.raises(ValueError, match="needs an image"):
        make_encoder("image", shapes[1:], dtypes[1:], 8, None)


def test_what_is_large_and_flattened_is_said() -> None:
    shape = [torch.Size((80, 80))]
    with pytest.warns(UserWarning, match=r"\[80, 80\] is no image for .*flattened, 6,400 numbers"):
        make_encoder("auto", shape, [torch.float32], 8, None)
    # not where it was asked for, nor for a row of numbers or a picture
    make_encoder("flat", shape, [torch.float32], 8, None)
    make_encoder("auto", [torch.Size((6400,))], [torch.float32], 8, None)
    make_encoder("auto", shape, [torch.uint8], 8, None)


@pytest.mark.parametrize("name", ["auto", "flat", "fourier", "image"])
def test_bytes_are_scaled_wherever_they_stand(name: Any) -> None:
    specs = make_specs(
        eye=Bounded(0, 255, shape=(84, 84, 3), dtype=torch.uint8),
        touch=Bounded(0, 255, shape=(4,), dtype=torch.uint8),
        index=Unbounded((), dtype=torch.int64),
        grid=Unbounded((2, 3)),
    )
    encoder = encoder_of(specs, encoder=name)
    inputs = [
        torch.randint(256, (6, *LARGE), dtype=torch.uint8),
        torch.randint(256, (6, 4), dtype=torch.uint8),
        torch.arange(6),
        torch.randn(6, 2, 3),
    ]
    y = encoder(*inputs)
    scaled = [x / 255 if x.dtype == torch.uint8 else x for x in inputs]
    assert_close(encoder(*scaled), y)
    # as large numbers would leave nothing of it
    assert y.shape == (6, 8)
    assert float((y.abs() > 0.99).float().mean()) < 0.2
    assert isinstance(encoder, Encoder) == (name == "flat")


def test_several_images_and_nested_entries() -> None:
    specs = EnvSpecs(
        Composite(
            left=Unbounded((3, 12, 16)),
            arm=Composite(eye=Unbounded((32, 32, 1)), joints=Unbounded((5,))),
        ),
        Categorical(4),
        ["left", ("arm", "eye"), ("arm", "joints")],
    )
    operator = make_actor_critic(specs, MEMORIES["gru"], embedding_size=8)
    policy = operator.get_policy_operator()
    encoder = find_encoder(operator)
    assert set(encoder.encoder.convolutions) == {"0", "1"}
    data = specs.observation_spec_unbatched.expand(7, *specs.observation_spec_unbatched.shape)
    step = data.rand().set("is_init", torch.ones(7, 1, dtype=torch.bool))
    before = policy(step.clone())["embedding"]
    for key in specs.policy_keys:
        changed = step.clone()
        changed[key] = changed[key] + 1
        assert not torch.allclose(policy(changed)["embedding"], before)


def test_leading_dimensions_are_rows() -> None:
    """A convolution gets one batch of pictures, whatever the sequences."""
    shapes = [LARGE, torch.Size((2,))]
    encoder = make_encoder("auto", shapes, [torch.uint8, torch.float32], 8, None)
    seen: list[Any] = []
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    image, other = torch.randint(256, (2, 5, *LARGE), dtype=torch.uint8), torch.randn(2, 5, 2)
    y = encoder(image, other)
    assert y.shape == (2, 5, 8)
    assert [shape[0] for shape in seen] == [10] * 4
    assert_close(y[1, 3:4], encoder(image[1, 3:4], other[1, 3:4]))
    assert encoder(image[:0], other[:0]).shape == (0, 5, 8)


class Picture(nn.Module):
    """An encoder of one's own, which knows of no sequences."""

    def __init__(
        self, shapes: Any, output_size: int, device: Any = None, *, width: int = 4
    ) -> None:
        super().__init__()
        (shape,) = shapes
        self.net = nn.Sequential(
            nn.Conv2d(shape[0], width, 3, device=device),
            nn.Flatten(),
            nn.LazyLinear(output_size, device=device),
        )

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 4
        return self.net(x / 255)


@pytest.mark.parametrize("encoder", ["auto", "image", "flat", "fourier", partial(Picture, width=3)])
@pytest.mark.parametrize(
    ("memory", "shared_memory"),
    [
        ("shm", False),
        *(
            pytest.param(*x, marks=pytest.mark.slow)
            for x in (("shm", True), ("gru", True), ("gru", False))
        ),
    ],
)
def test_gates_are_exact(encoder: Any, memory: str, shared_memory: bool) -> None:
    """Step by step it is what recurrent mode computes; the first probability ratio is 1."""
    keys = ["observation"]
    operator = make_actor_critic(
        SMALL(4), MEMORIES[memory], policy_keys=keys, encoder=encoder, shared_memory=shared_memory
    )
    policy: Any = operator.get_policy_operator()
    for parameter in policy.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    collector = RolloutCollector(
        SMALL, policy, num_envs=4, rollout_length=10, total_frames=80, seed=0
    )
    *_, batch = collector
    collector.close()
    assert batch["observation"].shape == (4, 10, 3, 5, 5)
    stepwise = batch["embedding"]
    with torch.no_grad(), set_recurrent_mode(True):
        again = policy.get_dist_params(batch.select(*policy.in_keys, strict=False))
    for key in ("embedding", "features", "logits"):
        assert_close(again[key], batch[key], atol=1e-5, rtol=0)
    assert stepwise.abs().max() > 0
    batch["advantage"] = torch.randn(4, 10, 1)
    loss = LeanClipPPOLoss(policy)
    terms = loss(batch.select(*loss.in_keys, strict=False))
    assert check_ratio(terms) == pytest.approx(1, abs=1e-5)
    terms["loss_objective"].backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0
        for name, parameter in policy.named_parameters()
        if "encoder" in name
    )


def test_waves_of_every_number() -> None:
    encoder = FourierEncoder([torch.Size((2,)), torch.Size(())], 5, num_octaves=3)
    xy, z = torch.randn(4, 2), torch.randn(4)
    waves = [
        wave(number * 2**octave)
        for number in (*xy.unbind(-1), z)
        for wave in (torch.sin, torch.cos)
        for octave in range(3)
    ]
    linear = encoder.encoder.linear
    expected = linear(torch.stack([*xy.unbind(-1), z, *waves], -1)).tanh()
    assert_close(encoder(xy, z), expected)
    with pytest.raises(ValueError, match="num_octaves must be at least 1, got 0"):
        FourierEncoder([torch.Size((2,))], 5, num_octaves=0)


def test_soft_actor_critic_has_one_each() -> None:
    operator = make_soft_actor_critic(SMALL(2), MEMORIES["shm"], policy_keys=["observation"])
    kinds = [type(part[0].module.encoder) for part in (operator.actor, operator.critic)]
    assert kinds == [ImageEncoder, ImageEncoder]
    behavior = get_behavior(operator)
    step = SMALL(2).reset().set("is_init", torch.ones(2, 1, dtype=torch.bool))
    assert behavior(step)["action"].shape == (2,)


@pytest.mark.parametrize(
    ("encoder", "error", "message"),
    [
        (
            "picture",
            ValueError,
            "network.encoder='picture' is unknown; choose auto, flat, fourier or image",
        ),
        ("image", ValueError, r"needs an image.*entries are \[\[2\], \[2\]\]: use auto or flat"),
        (nn.Linear(4, 8), TypeError, "network.encoder is a Linear; pass what makes it"),
        (3, TypeError, "network.encoder is a int"),
        (lambda **_: 3, TypeError, "made a int; it must be an nn.Module"),
        (
            lambda shapes, output_size, device: Encoder(shapes, output_size + 1, device),
            ValueError,
            r"network.encoder=Encoder gives \[2, 9\] for 2 steps, expected \[2, 8\]",
        ),
    ],
)
def test_mistakes(encoder: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encoder_of(WindEnv(2), encoder=encoder)


def test_an_encoder_of_ones_own_is_called_with_rows_in_their_dtypes() -> None:
    seen: list[Any] = []

    class Own(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            seen.append([(x.dtype, x.shape[1:]) for x in inputs])
            return torch.zeros(len(inputs[0]), 8)

    def make(shapes: Any, output_size: int, device: Any) -> nn.Module:
        assert output_size == 8
        return Own()

    specs = make_specs(
        eye=Bounded(0, 255, shape=LARGE, dtype=torch.uint8), index=Unbounded((), dtype=torch.int64)
    )
    encoder = encoder_of(specs, encoder=make)
    assert isinstance(encoder, Rows)
    eye, index = torch.zeros(2, 3, *LARGE, dtype=torch.uint8), torch.zeros(2, 3, dtype=torch.int64)
    assert encoder(eye, index).shape == (2, 3, 8)
    assert seen == [[(torch.uint8, LARGE), (torch.int64, torch.Size())]] * 2
    assert TensorDict({"eye": eye, "index": index}, [2, 3])["eye"] is eye
