"""Networks: shapes, gradients, the field of view they claim, and what the latent does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cdal_engine.attention import Attention
from cdal_engine.config import AttentionConfig, ModelConfig, NetworkConfig
from cdal_engine.losses import r1_penalty
from cdal_engine.networks import Discriminator, Generator, receptive_halo, to_label_grid
from cdal_engine.networks.blocks import ChannelNorm, depth_to_space, space_to_depth


def config_of(target: str = "nuclei", dims: int = 2) -> ModelConfig:
    network = NetworkConfig(
        spatial_dims=dims,
        widths=(8, 12, 16),
        denoiser_width=12,
        detail_width=8,
        latent_dim=4,
        discriminator_widths=(8, 12, 16),
    )
    classes = ("a", "b") if target == "classes" else ("nucleus",)
    return ModelConfig(target=target, classes=classes, network=network)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("target", ["binary", "classes", "nuclei"])
def test_shapes_and_range(target: str, dims: int) -> None:
    config = config_of(target, dims)
    size, cells = (16,) * dims, (8,) * dims
    generator, k = Generator(config), config.label_channels
    image, x_t = torch.randn(2, 3, *size), torch.randn(2, k, *cells)
    x_0 = generator(x_t, torch.tensor([0.25, 1.0]), torch.randn(2, 4), image)
    assert x_0.shape == (2, k, *size)
    assert x_0.abs().max() <= 1
    if k > 1:  # channels are probabilities of one pixel
        torch.testing.assert_close(((x_0 + 1) / 2).sum(dim=1), torch.ones(2, *size))
    on_grid = to_label_grid(x_0, 0.3)
    logits = Discriminator(config)(on_grid, x_t, image, torch.tensor([0.25, 1.0]))
    assert logits.shape == (2, 1, *(2,) * dims)


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3)
)
def test_depth_to_space_undoes_space_to_depth(b: int, c: int, h: int, w: int, factor: int) -> None:
    x = torch.randn(b, c, h * factor, w * factor)
    there = space_to_depth(x, factor)
    assert there.shape == (b, c * factor**2, h, w)
    assert torch.equal(depth_to_space(there, factor), x)


def test_gradient_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    config = config_of()
    generator, discriminator = Generator(config), Discriminator(config)
    image, x_t, level = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 16, 16), torch.rand(2)
    features = generator.encode(image)
    x_0 = generator.denoise(x_t, level, torch.randn(2, 4), features)
    logits = discriminator(to_label_grid(x_0, 0.3), x_t, image, level)
    (x_0.square().mean() + features.logits.square().mean() + logits.square().mean()).backward()
    for name, parameter in [*generator.named_parameters(), *discriminator.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_latent_changes_the_answer() -> None:
    generator = Generator(config_of()).eval()
    features = generator.encode(torch.randn(1, 3, 16, 16))
    x_t, level = torch.randn(1, 3, 8, 8), torch.ones(1)
    answers = [generator.denoise(x_t, level, torch.randn(1, 4), features) for _ in range(2)]
    assert not torch.allclose(*answers)


@pytest.mark.parametrize("network", [NetworkConfig(), config_of().network])
def test_field_of_view_is_within_the_halo(network: NetworkConfig) -> None:
    """No pixel beyond the claimed reach has any influence; one well inside it has."""
    config = ModelConfig(network=network)
    torch.manual_seed(0)
    generator = Generator(config).double().eval()
    halo = receptive_halo(config, 1)
    size = 2 * halo + 2 * network.stride
    image = torch.randn(1, 3, network.stride, size, dtype=torch.float64, requires_grad=True)
    x_t = torch.randn(1, 3, network.stride // 2, size // 2, dtype=torch.float64)
    z = torch.randn(1, network.latent_dim, dtype=torch.float64)
    # float32 embedding of the level inside: cast by hand
    x_0 = generator(x_t, torch.ones(1, dtype=torch.float64), z, image)
    x_0[..., : network.stride].sum().backward()
    reach = int(image.grad.abs().sum(dim=(0, 1, 2)).nonzero().max()) - network.stride + 1
    assert halo / 3 < reach <= halo


def test_no_statistics_cross_pixels_in_the_discriminator() -> None:
    config = config_of()
    torch.manual_seed(0)
    discriminator = Discriminator(config).eval()
    x, image = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 128, 128)
    level = torch.ones(1)
    whole = discriminator.features(x, x, image, level)[0]
    part = discriminator.features(x[..., 16:48], x[..., 16:48], image[..., 32:96], level)[0]
    torch.testing.assert_close(whole[..., 20:44], part[..., 4:28])


@settings(max_examples=20)
@given(st.integers(1, 8), st.floats(-3, 3), st.floats(0.1, 10))
def test_channel_norm_is_per_pixel(channels: int, shift: float, scale: float) -> None:
    x = torch.randn(1, channels, 4, 4)
    changed = x.clone()
    changed[..., 0, 0] = changed[..., 0, 0] * scale + shift
    norm = ChannelNorm(channels)
    same = (norm(x) == norm(changed)).all(dim=1)
    assert same.sum() >= 15


def test_attention_is_bounded_normalised_and_fixed_at_inference() -> None:
    attention = Attention(AttentionConfig(), momentum=0.5)
    for _ in range(30):  # a drifting scale, as the discriminator trains
        attention(torch.randn(2, 4, 8, 8) + 5, (16, 16))
    attention.eval()
    before = attention.running_mean.clone()
    weights = attention(torch.randn(2, 4, 8, 8) + 5, (16, 16))
    assert weights.shape == (2, 1, 16, 16)
    assert weights.mean().item() == pytest.approx(1, abs=0.1)
    assert 0 <= weights.min() <= weights.max() <= 2
    assert torch.equal(attention.running_mean, before)
    assert attention(torch.full((1, 4, 2, 2), 1e4), (4, 4)).max() == 2


def test_attention_of_the_paper_is_the_raw_mean() -> None:
    features = torch.randn(2, 4, 8, 8)
    attention = Attention(AttentionConfig(mode="paper"))(features, (16, 16))
    assert torch.equal(attention[:, 0, ::2, ::2], features.mean(dim=1))
    assert attention.min() < 0


def test_r1_penalty_of_a_linear_discriminator() -> None:
    """For D(x) = w · x the penalty is half of |w|², whatever x."""
    w = torch.randn(1, 2, 4, 4)
    penalty = r1_penalty(lambda x: (w * x).flatten(1).sum(1, keepdim=True), torch.randn(3, 2, 4, 4))
    assert penalty.item() == pytest.approx(0.5 * w.square().sum().item(), rel=1e-5)
