# SPDX-License-Identifier: MIT
"""TinyTL: layers and memory against published numbers, the network, exact gradients in slices."""

import csv
import subprocess
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from algo.tinytl.architecture import (
    BACKBONES,
    EFFICIENTNET_LITE0,
    METHODS,
    PROXYLESS_MOBILE,
    Block,
    layers,
    method,
    n_parameters,
    n_trained,
    passes,
)
from algo.tinytl.functional import (
    conv,
    conv_input_gradient,
    packed,
    packed_by_torch,
    relu,
    relu6,
    standardised,
    standardised_backward_,
    unpacked,
    unpacked_by_torch,
)
from algo.tinytl.live import gradient_error, peak_bytes_of, saved_for_backward
from algo.tinytl.memory import full_count, parameter_bytes, published
from algo.tinytl.network import Lite, Network, modules_by_layer, set_trained
from algo.tinytl.recompute import RecomputedStep

FLOWERS = replace(PROXYLESS_MOBILE, n_classes=102)
LITE_BIAS = METHODS["lite+bias"]
SMALL = replace(
    PROXYLESS_MOBILE,
    name="small",
    n_classes=5,
    c_mix=64,
    blocks=(
        Block(16, 8, 1, 3, 1), Block(8, 16, 3, 5, 2), Block(16, 16, 3, 3, 1), Block(16, 24, 3, 7, 2),
        Block(24, 24, 2, 3, 1), Block(24, 32, 3, 5, 1),
    ),
)  # fmt: skip


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(network: Network, seed: int = 1) -> Network:
    """Every norm and the classifier away from their starting values, in float64."""
    network, generator = network.double(), rng(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" in name or "classifier" in name:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter += 0.2 * noise
    return network


def cross_entropy(scores, labels):
    return F.cross_entropy(scores, labels, reduction="sum", label_smoothing=0.1)


def pictures(n: int, resolution: int):
    return torch.randn(n, 3, resolution, resolution, generator=rng(2)).double(), torch.arange(n) % 5


# Layers


def test_every_kind_of_layer_and_pass():
    with Path(__file__).with_name("tinytl_sums.csv").open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    expected = {tuple(list(row.values())[:5]): [int(v) for v in list(row.values())[5:]] for row in rows}
    found: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0] * 5)
    for resolution in (224, 256, 320):
        for name, chosen in METHODS.items():
            for one in passes(FLOWERS, chosen, resolution):
                layer, forward = one.layer, one.kind == "fwd"
                if forward and name != "last":
                    continue  # the same for all methods
                key = (
                    str(resolution),
                    layer.part,
                    layer.kind,
                    one.kind,
                    "all" if forward else name,
                )
                sizes = [layer.n_in, layer.n_out, layer.n_weights + layer.n_biases] if forward else [0] * 3
                found[key] = [a + b for a, b in zip(found[key], [1, one.n_macs, *sizes], strict=True)]
    assert found == expected


@pytest.mark.parametrize(
    "name, n_params, parameters_mb, mmacs",
    [
        ("last", 130_662, 5.138576, 394.699),
        ("bias", 151_638, 5.201504, 778.429),
        ("lite", 1_947_078, 10.587824, 822.961),
        ("lite+bias", 1_962_310, 10.633520, 853.719),
        ("norm+last", 172_614, 5.264432, 778.429),
        ("full", 4_746_590, 18.986360, 1172.867),
    ],
)
def test_what_each_method_trains(name, n_params, parameters_mb, mmacs):
    """Parameters and bytes are those of the paper's figures."""
    assert n_trained(FLOWERS, METHODS[name]) == n_params
    assert parameter_bytes(FLOWERS, METHODS[name]) == round(parameters_mb * 1e6)
    steps = passes(FLOWERS, METHODS[name], 224)
    products = sum(step.n_macs for step in steps if step.layer.kind in ("conv", "linear"))
    assert products / 1e6 == pytest.approx(mmacs, abs=1e-3)


def test_size_of_the_backbones():
    plain = replace(PROXYLESS_MOBILE, lite=False)
    assert n_parameters(plain) == 4_080_512
    assert sum(layer.n_macs for layer in layers(plain, 224)) == 320_427_584
    assert n_parameters(EFFICIENTNET_LITE0) == 4_652_008
    kernels = [PROXYLESS_MOBILE.lite_kernel(i) for i in range(1, 20)]
    assert kernels == [5] * 15 + [3] * 4


def test_needs_no_torch():
    code = "import sys, algo.tinytl.memory; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Memory


@pytest.mark.parametrize(
    "name, resolution, batch_size, megabytes",
    [
        ("last", 224, 8, 30.8), ("bias", 224, 8, 31.7), ("lite", 224, 8, 37.1), ("norm+last", 224, 8, 192.4),
        *(("full", r, 8, mb) for r, mb in zip(range(96, 225, 32), (87.2, 140.5, 208.7, 292.4, 390.8),
                                              strict=True)),
        *(("lite+bias", r, 8, mb) for r, mb in zip(range(160, 321, 32), (24.2, 30.1, 37.1, 45.2, 54.4, 64.7),
                                                   strict=True)),
        *(("lite+bias", r, 1, mb) for r, mb in zip(range(160, 321, 32), (12.3, 13.1, 13.9, 15.0, 16.1, 17.4),
                                                   strict=True)),
    ],
)  # fmt: skip
def test_the_papers_memory_to_a_tenth_of_a_megabyte(name, resolution, batch_size, megabytes):
    footprint = published(FLOWERS, METHODS[name], resolution, batch_size)
    assert round(footprint.total_bytes / 1e6, 1) == megabytes


def test_full_count_by_hand():
    """One picture, bias-only: every norm behind a trained bias keeps its input, the stem's does not."""
    name = "bias"
    kept = 0.0
    for layer in layers(FLOWERS, 224):
        kept += {"act": layer.n_in / 8, "norm": 4 * layer.n_in * (layer.name != "stem.gn")}.get(layer.kind, 0)
    kept += 4 * 1280
    found = full_count(FLOWERS, METHODS[name], 224, 1)
    assert found.saved_bytes == kept
    assert found.update_bytes == 12 * 151_638
    assert found.activation_bytes > found.saved_bytes
    without = full_count(FLOWERS, METHODS[name], 224, 1, backward=False)
    assert without.update_bytes == 0 and without.activation_bytes <= found.activation_bytes
    eight = full_count(FLOWERS, METHODS[name], 224, 1, main_norm_bytes=1)
    main = sum(x.n_in for x in layers(FLOWERS, 224) if x.kind == "norm" and x.part == "main")
    assert found.saved_bytes - eight.saved_bytes == 3 * (main - 32 * 112**2)


def test_saved_bytes_of_a_real_step_are_those_counted():
    """Autograd's saved tensors are those of the full count, and those named here."""
    network = shaken(Network(replace(SMALL, lite=False))).float()
    set_trained(network, METHODS["bias"])
    images = torch.randn(2, 3, 64, 64, generator=rng())
    with saved_for_backward(network.parameters()) as saved:
        loss = network(images).sum()
    counted = 2 * full_count(replace(SMALL, lite=False), METHODS["bias"], 64, 2).saved_bytes
    groups = sum(x.groups for x in layers(SMALL, 64) if x.kind == "norm" and x.part == "main")
    statistics = 2 * 2 * 4 * groups  # mean and deviation of each group of a picture
    stem = 2 * 4 * 16 * 32**2  # group norm in PyTorch keeps its input even where only the bias is trained
    kernels = 4 * sum(
        x.n_weights for x in layers(SMALL, 64) if x.kind == "conv" and x.part == "main" and x.name != "stem"
    )  # standardised anew in each step
    assert loss.requires_grad and saved.n_bytes == counted + statistics + stem + kernels


def test_peak_counts_what_is_alive():
    def step():
        a = torch.zeros(1000)  # 4,000 bytes
        b = a + 1
        a.mul_(2)
        del a
        c = b.view(10, 100) * 2
        return c

    assert peak_bytes_of(step) == 8000


# Network


def test_standardised_by_hand():
    weight = torch.tensor([[1.0, 2.0, 3.0, 6.0], [5.0, 5.0, 5.0, 5.0]]).reshape(2, 4, 1, 1)
    deviation = ((4 + 1 + 0 + 9) / 3) ** 0.5
    expected = torch.tensor([[-2.0, -1.0, 0.0, 3.0], [0.0] * 4]) / (deviation + 1e-5)
    assert torch.allclose(standardised(weight).flatten(1), expected)
    weight = torch.randn(5, 3, 3, 3, generator=rng()).double().requires_grad_()
    gradient = torch.randn(weight.shape, generator=rng(1)).double()
    (exact,) = torch.autograd.grad(standardised(weight), weight, gradient)
    standardised_backward_(gradient, weight.detach())
    assert torch.allclose(gradient, exact, rtol=1e-12)


def test_activations_keep_one_bit():
    x = torch.tensor([-1.0, 0.0, 2.0, 6.0, 7.0, 5.9, 0.1, -3.0, 1.0], requires_grad=True)
    with saved_for_backward([]) as saved:
        y = relu6(x)
    assert saved.n_bytes == 2 and y.tolist() == x.clamp(0, 6).tolist()
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 0, 1, 0, 0, 1, 1, 0, 1]
    assert relu(x).tolist() == x.clamp(min=0).tolist()
    mask = torch.rand(3, 7, generator=rng()) < 0.5
    assert torch.equal(unpacked(packed(mask), mask.shape), mask)
    assert torch.equal(packed_by_torch(mask), packed(mask))
    assert torch.equal(unpacked_by_torch(packed(mask), mask.shape), mask)


@pytest.mark.parametrize("padding", ["symmetric", "tensorflow"])
@pytest.mark.parametrize("size, kernel, stride", [(12, 3, 1), (12, 5, 2), (9, 3, 2), (7, 7, 2)])
def test_adjoint_of_convolution(size, kernel, stride, padding):
    x = torch.randn(2, 8, size, size, generator=rng()).double()
    weight = torch.randn(8, 1, kernel, kernel, generator=rng(1)).double()
    y = conv(x, weight, stride, 8, padding)
    assert y.shape[-1] == -(-size // stride)
    g = torch.randn(y.shape, generator=rng(2)).double()
    adjoint = conv_input_gradient(g, weight, size, stride, 8, padding)
    assert torch.allclose((g * y).sum(), (adjoint * x).sum())


def test_lite_module_is_built_from_plain_parts():
    torch.manual_seed(0)
    lite = Lite(Block(16, 24, 3, 7, 2), 5).double()
    nn.init.normal_(lite.norm2.weight)
    x = torch.randn(2, 16, 22, 22, generator=rng()).double()
    y = F.avg_pool2d(x, 2, 2)
    y = F.conv2d(y, standardised(lite.conv1.weight), stride=2, padding=2, groups=2)
    y = F.group_norm(y, 2, lite.norm1.weight, lite.norm1.bias, 1e-3).relu()
    y = F.group_norm(
        F.conv2d(y, standardised(lite.conv2.weight)), 3, lite.norm2.weight, lite.norm2.bias, 1e-3
    )
    y = F.interpolate(y, (11, 11), mode="bilinear", align_corners=False)
    assert torch.allclose(lite(x, 11), y)


def test_shapes_of_the_network_are_those_of_the_layers():
    network, seen = Network(SMALL), {}
    for name, module in modules_by_layer(network).items():
        module.register_forward_hook(lambda m, x, y, name=name: seen.update({name: (x[0].shape, y.shape)}))
    network(torch.randn(2, 3, 64, 64, generator=rng()))
    for layer in layers(SMALL, 64):
        if layer.name in seen:
            before, after = seen[layer.name]
            assert (before[1:].numel(), after[1:].numel()) == (layer.n_in, layer.n_out), layer.name
    assert sum(p.numel() for p in network.parameters()) == n_parameters(SMALL)


def test_a_new_lite_module_changes_nothing():
    with_lite, without = Network(SMALL), Network(replace(SMALL, lite=False))
    for network in (with_lite, without):
        nn.init.normal_(network.classifier.weight, generator=rng())
    without.load_state_dict({k: v for k, v in with_lite.state_dict().items() if ".lite." not in k})
    images = torch.randn(2, 3, 64, 64, generator=rng())
    assert torch.equal(with_lite(images), without(images))


@pytest.mark.parametrize("name", METHODS)
def test_trained_parameters_alone_get_gradients(name):
    network = shaken(Network(SMALL))
    trained = set_trained(network, METHODS[name])
    assert sum(p.numel() for p in trained) == n_trained(SMALL, METHODS[name])
    cross_entropy(network(pictures(2, 64)[0]), torch.tensor([0, 3])).backward()
    for parameter in network.parameters():
        assert (parameter.grad is not None) == any(parameter is p for p in trained)
    assert all(float(p.grad.abs().max()) > 0 for p in trained)


# Exact gradients in little memory


def gradients(network: Network, run) -> list[torch.Tensor]:
    for parameter in network.parameters():
        parameter.grad = None
    run()
    return [p.grad for p in network.parameters() if p.requires_grad]


@pytest.mark.parametrize(
    "norm, padding", [("group", "symmetric"), ("affine", "tensorflow"), ("group", "tensorflow")]
)
@pytest.mark.parametrize("name", ["last", "bias", "lite", "lite+bias", "norm+last"])
def test_recomputed_gradients_are_exact(name, norm, padding):
    network = shaken(Network(replace(SMALL, norm=norm, padding=padding)))
    set_trained(network, METHODS[name])
    images, labels = pictures(3, 70)
    exact = gradients(network, lambda: cross_entropy(network(images), labels).backward())
    for slice_channels, micro_batch in ((8, 1), (24, 2)):
        step = RecomputedStep(network, slice_channels=slice_channels, micro_batch=micro_batch)
        found = gradients(network, lambda step=step: step(images, labels, cross_entropy))
        for a, b in zip(found, exact, strict=True):
            assert (a - b).abs().max() <= 1e-9 * b.abs().max()
        again = [g.clone() for g in found]
        step(images, labels, cross_entropy)  # replaces, does not add
        assert all(torch.allclose(p.grad, g, rtol=1e-12) for p, g in zip(
            [p for p in network.parameters() if p.requires_grad], again, strict=True))  # fmt: skip


def test_recomputation_takes_a_fraction_of_the_memory():
    network = shaken(Network(replace(FLOWERS, n_classes=5))).float()
    trained = set_trained(network, LITE_BIAS)
    images, labels = torch.randn(1, 3, 64, 64, generator=rng()), torch.tensor([4])
    cross_entropy(network(images), labels).backward()
    exact = [p.grad.clone() for p in trained]
    usual = peak_bytes_of(lambda: cross_entropy(network(images), labels).backward())
    step = RecomputedStep(network, slice_channels=96, micro_batch=1)
    little = peak_bytes_of(lambda: step(images, labels, cross_entropy))
    assert gradient_error([p.grad for p in trained], exact) < 1e-4
    assert little < usual / 2


@pytest.mark.full
@pytest.mark.parametrize("batch_size, slice_channels, megabytes", [(8, 960, 37.1), (1, 8, 13.9)])
def test_inside_the_published_footprint(batch_size, slice_channels, megabytes):
    """ProxylessNAS, lite and bias, 224 pixels: measured live bytes within the paper's footprint."""
    network = shaken(Network(FLOWERS)).float()
    trained = set_trained(network, LITE_BIAS)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    images = torch.randn(batch_size, 3, 224, 224, generator=rng())
    step = RecomputedStep(network, slice_channels=slice_channels, micro_batch=1)
    live = peak_bytes_of(lambda: step(images, torch.arange(batch_size), cross_entropy))
    assert round((live + parameter_bytes(FLOWERS, LITE_BIAS)) / 1e6, 1) <= megabytes


@pytest.mark.full
def test_exact_at_the_papers_size():
    """ProxylessNAS, lite and bias, 224 pixels, float64."""
    network = shaken(Network(FLOWERS))
    set_trained(network, LITE_BIAS)
    images, labels = pictures(1, 224)
    exact = gradients(network, lambda: cross_entropy(network(images), labels).backward())
    step = RecomputedStep(network, slice_channels=960)
    for a, b in zip(gradients(network, lambda: step(images, labels, cross_entropy)), exact, strict=True):
        assert (a - b).abs().max() <= 1e-9 * b.abs().max()


def test_eight_bit_inputs_leave_small_errors_and_save_memory():
    network = shaken(Network(SMALL))
    set_trained(network, LITE_BIAS)
    images, labels = pictures(4, 64)
    plain = network(images)
    exact = gradients(network, lambda: cross_entropy(network(images), labels).backward())
    network.save_in_eight_bits()
    assert torch.allclose(network(images), plain, rtol=1e-9)
    rounded = gradients(network, lambda: cross_entropy(network(images), labels).backward())
    assert 1e-6 < gradient_error(rounded, exact) < 0.03
    with saved_for_backward(network.parameters()) as eight:
        network(images)
    network.save_in_eight_bits(False)
    with saved_for_backward(network.parameters()) as full:
        network(images)
    assert eight.n_bytes < 0.5 * full.n_bytes


# Bad input


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"norm": "batch"}, "norm must be group or affine, not 'batch'"),
        ({"padding": "none"}, "padding must be symmetric or tensorflow, not 'none'"),
        ({"n_classes": 1}, "n_classes must be at least 2, not 1"),
        ({"c_mix": 100}, "channels must be multiples of 8, not 100"),
        ({"blocks": (Block(16, 8, 2, 3, 1),)}, "the first block must have expansion 1"),
    ],
)
def test_rejects_bad_backbones(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **fields)


def test_rejects_bad_use():
    with pytest.raises(ValueError, match=r"method must be one of last, bias, .*, not 'half'"):
        method("half")
    with pytest.raises(ValueError, match="resolution must be at least 64 pixels, not 32"):
        layers(SMALL, 32)
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        published(SMALL, LITE_BIAS, 64, 0)
    network = Network(SMALL)
    with pytest.raises(ValueError, match=r"images must be float\[B, 3, R, R\], not \[1, 3, 64, 32\]"):
        network(torch.zeros(1, 3, 64, 32))
    with pytest.raises(ValueError, match="slice_channels must be a positive multiple of 8, not 12"):
        RecomputedStep(network, slice_channels=12)
    with pytest.raises(ValueError, match="micro_batch must be at least 1, not 0"):
        RecomputedStep(network, micro_batch=0)
    set_trained(network, METHODS["full"])
    with pytest.raises(ValueError, match="method must leave the convolutions of the main branch frozen"):
        RecomputedStep(network)


def test_backbones_by_name():
    assert set(BACKBONES) == {"proxylessnas-mobile", "efficientnet-lite0"}
