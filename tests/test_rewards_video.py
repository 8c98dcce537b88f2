"""Metrics of frames, against scikit-image, closed forms and brute force."""

import numpy as np
import pytest
import torch
import torch.nn as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import rewards


# scikit-image's options for the SSIM of Wang et al. 2004
AS_IN_THE_PAPER = dict(
    channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1
)


def frames(n=3, size=(24, 32), seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(n, 3, *size, generator=generator)
    return a, (a + 0.2 * torch.randn(a.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("size", [(11, 11), (24, 32), (64, 64)])
def test_ssim_and_psnr_agree_with_scikit_image(size):
    a, b = frames(size=size)
    for n in range(3):
        x, y = (t[n].permute(1, 2, 0).numpy() for t in (a, b))
        expected = structural_similarity(x, y, **AS_IN_THE_PAPER)
        assert rewards.ssim(a, b)[n].item() == pytest.approx(expected, abs=1e-4)
        expected = peak_signal_noise_ratio(x, y, data_range=1)
        assert rewards.psnr(a, b)[n].item() == pytest.approx(expected, abs=1e-4)


def test_mae_and_mse_are_means_over_pixels_and_masks_choose_them():
    a, b = frames()
    by_hand = [np.abs(x - y).mean() for x, y in zip(a.numpy(), b.numpy())]
    assert rewards.mae(a, b).tolist() == pytest.approx(by_hand, rel=1e-5)
    by_hand = [((x - y) ** 2).mean() for x, y in zip(a.numpy(), b.numpy())]
    assert rewards.mse(a, b).tolist() == pytest.approx(by_hand, rel=1e-5)
    mask = torch.rand(3, 1, 24, 32) > 0.5
    mask[2] = False
    by_hand = []
    for x, y, m in zip(a.numpy()[:2], b.numpy(), mask.numpy()):
        by_hand.append(np.abs(x - y)[:, m[0]].mean())
    assert rewards.mae(a, b, mask).tolist() == pytest.approx([*by_hand, 0], rel=1e-5)
    assert rewards.psnr(a, b, mask)[2] == 100


def test_equal_frames_are_perfect_and_inputs_stay_as_they_are():
    a, b = frames()
    before = a.clone(), b.clone()
    assert rewards.mae(a, a).tolist() == [0] * 3 and rewards.psnr(a, a).tolist() == [100] * 3
    assert rewards.ssim(a, a).tolist() == pytest.approx([1] * 3, abs=1e-6)
    rewards.ssim(a, b), rewards.psnr(a, b)
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])


def test_frames_that_are_too_small_get_a_sentence():
    with pytest.raises(ValueError, match="11x11.*10x30"):
        rewards.ssim(torch.rand(1, 3, 10, 30), torch.rand(1, 3, 10, 30))
    with pytest.raises(ValueError, match="16x16.*15x30"):
        rewards.lpips(torch.rand(1, 3, 15, 30), torch.rand(1, 3, 15, 30), None)


def test_ssim_of_bright_and_nearly_flat_frames_does_not_cancel():
    generator = torch.Generator().manual_seed(0)
    a = (0.9 + 0.01 * torch.randn(2, 3, 40, 40, generator=generator)).clamp(0, 1)
    b = (a + 0.01 * torch.randn(a.shape, generator=generator)).clamp(0, 1)
    for n in range(2):
        x, y = (t[n].permute(1, 2, 0).double().numpy() for t in (a, b))
        expected = structural_similarity(x, y, **AS_IN_THE_PAPER)
        assert rewards.ssim(a, b)[n].item() == pytest.approx(expected, abs=1e-4)


def test_metrics_are_fp32_also_under_autocast_and_never_pass_through_a_convolution_that_rounds(
    tmp_path, monkeypatch
):
    public_files(tmp_path)
    net = rewards.load_lpips(str(tmp_path))
    a, b = frames(1)
    functions = [rewards.mae, rewards.mse, rewards.psnr, rewards.ssim]
    functions.append(lambda a, b: rewards.lpips(a, b, net))
    expected = [function(a, b) for function in functions]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for function, value in zip(functions, expected):
            assert function(a, b).dtype == torch.float32 and torch.equal(function(a, b), value)
    # on a GPU it is TF32 by default, which is too coarse for SSIM
    monkeypatch.setattr(torch.nn.functional, "conv2d", None)
    assert torch.equal(rewards.ssim(a, b), expected[3])


def test_moving_pixels_are_those_where_any_colour_differs():
    last = torch.full((2, 3, 4, 5), 0.5)
    truth = last.clone()
    truth[0, 2, 1, 3] += 0.1  # one colour is enough, and darker counts as brighter does
    truth[1, 0, 0, 0] -= 0.1
    truth[1, 1, 2, 2] += 0.02  # below the threshold of 8 / 255
    mask = rewards.moving(truth, last)
    assert mask.shape == (2, 1, 4, 5) and mask.nonzero().tolist() == [[0, 0, 1, 3], [1, 0, 0, 0]]
    finer = rewards.moving(truth, last, threshold=0.01)
    assert finer.nonzero().tolist() == [[0, 0, 1, 3], [1, 0, 0, 0], [1, 0, 2, 2]]
    assert rewards.mae(truth, last, mask).tolist() == pytest.approx([0.1 / 3] * 2, rel=1e-5)
    # frames of a segment against the one frame before it
    several = rewards.moving(truth[:, None].expand(2, 6, 3, 4, 5), last[:, None])
    assert several.shape == (2, 6, 1, 4, 5) and torch.equal(several[:, 4], mask)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_values_stay_in_their_ranges(seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(2, 3, 16, 16, generator=generator).pow(p) for p in (1, 5))
    assert ((0 <= rewards.mae(a, b)) & (rewards.mae(a, b) <= 1)).all()
    assert ((rewards.ssim(a, b) <= 1) & (rewards.ssim(a, b) >= -1)).all()
    assert ((0 <= rewards.psnr(a, b)) & (rewards.psnr(a, b) <= 100)).all()


def public_files(folder):
    """
    Random weights in the layout of torchvision's VGG16 and of the LPIPS repository.

    Returns the same network as nn.Sequential, and the weights of the heads.
    """
    torch.manual_seed(0)
    widths = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]
    layers = []
    previous = 3
    for width in widths:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(previous, width, 3, padding=1), nn.ReLU()]
            previous = width
    vgg = nn.Sequential(*layers)
    heads = {}
    for n, width in enumerate((64, 128, 256, 512, 512)):
        heads[f"lin{n}.model.1.weight"] = torch.rand(1, width, 1, 1)
    weights = {f"features.{k}": v for k, v in vgg.state_dict().items()}
    weights["classifier.0.bias"] = torch.zeros(3)
    torch.save(weights, folder / "vgg16-397923af.pth")
    torch.save(heads, folder / "vgg.pth")
    return vgg, [head.flatten() for head in heads.values()]


def test_lpips_is_what_its_paper_says(tmp_path):
    vgg, heads = public_files(tmp_path)
    net = rewards.load_lpips(str(tmp_path))
    a, b = frames(2, (32, 48))
    expected = np.zeros(2)
    # torchvision's slices: relu1_2 is the output of the first four modules, and so on
    ends = (4, 9, 16, 23, 30)
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    spread = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    with torch.no_grad():
        for end, head in zip(ends, heads):
            maps = []
            for x in (a, b):
                y = vgg[:end](((2 * x - 1) - shift) / spread)
                maps.append(y / (torch.linalg.vector_norm(y, dim=1, keepdim=True) + 1e-10))
            weighted = torch.einsum("nchw,c->nhw", (maps[0] - maps[1]) ** 2, head)
            expected += weighted.mean((1, 2)).numpy()
    assert rewards.lpips(a, b, net).tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    assert rewards.lpips(a, a, net).tolist() == [0, 0]
    assert expected.min() > 0.01 and not any(p.requires_grad for p in net.parameters())
    before = a.clone(), b.clone()
    rewards.lpips(a, b, net)
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])
    b.requires_grad_(True)
    rewards.lpips(a, b, net).sum().backward()
    assert b.grad.isfinite().all() and b.grad.abs().sum() > 0  # the tokenizer may train on it
    for convolution in net.convolutions:
        # now many places have no active channel: a root of 0, whose slope is infinite
        convolution.bias.sub_(1)
    b.grad = None
    rewards.lpips(a, b, net).sum().backward()
    assert b.grad.isfinite().all()


def test_one_file_with_both_and_the_old_format_of_the_public_files(tmp_path):
    public_files(tmp_path)
    a, b = frames(1, (16, 16))
    expected = rewards.lpips(a, b, rewards.load_lpips(str(tmp_path)))
    both = {
        **torch.load(tmp_path / "vgg16-397923af.pth", weights_only=True),
        **torch.load(tmp_path / "vgg.pth", weights_only=True),
    }
    # torchvision's file is older than the zip format
    torch.save(both, tmp_path / "both.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(rewards.lpips(a, b, rewards.load_lpips(tmp_path / "both.pth")), expected)
    del both["features.28.bias"]  # the last convolution
    torch.save(both, tmp_path / "both.pth")
    words = "features.28.bias.*download.pytorch.org.*PerceptualSimilarity"
    with pytest.raises(ValueError, match=words):
        rewards.load_lpips(tmp_path / "both.pth")


def test_missing_or_foreign_weights_get_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="vgg16-397923af.pth.*download.pytorch.org"):
        rewards.load_lpips("")
    public_files(tmp_path)
    (tmp_path / "vgg.pth").unlink()
    with pytest.raises(ValueError, match="vgg.pth.*PerceptualSimilarity"):
        rewards.load_lpips(str(tmp_path))
    torch.save({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, tmp_path / "vgg.pth")
    with pytest.raises(ValueError, match="not VGG16's and LPIPS's"):
        rewards.load_lpips(str(tmp_path))
    (tmp_path / "vgg.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="damaged"):
        rewards.load_lpips(str(tmp_path))


def test_repetition_by_brute_force():
    torch.manual_seed(0)
    tokens = torch.randint(0, 2, (50, 4, 2))
    last = torch.randint(0, 2, (50, 2))
    by_hand = []
    for row, before in zip(tokens.tolist(), last.tolist()):
        sequence = [before, *row]
        by_hand.append([float(sequence[t] == sequence[t + 1]) for t in range(4)])
    assert rewards.frame_repeats(tokens, last).tolist() == by_hand
    # single-step: the last frame again
    assert rewards.frame_repeats(last[:, None], last).tolist() == [[1]] * 50


def test_frames_are_aggregated():
    values = torch.tensor([[1.0, 2.0, 4.0]])
    assert rewards.aggregate_frames(values).item() == pytest.approx(7 / 3)
    assert rewards.aggregate_frames(values, "last").item() == 4
    with pytest.raises(ValueError, match="'lst'"):
        rewards.aggregate_frames(values, "lst")
    discounted = (0.9 * 1 + 0.81 * 2 + 0.729 * 4) / (0.9 + 0.81 + 0.729)
    assert rewards.aggregate_frames(values, "discount").item() == pytest.approx(discounted)
