"""How much of the class is in a code, and how sharp a picture is: against closed forms and other libraries."""

from math import pi

import numpy as np
import pytest
import torch
from scipy.ndimage import laplace
from torch.distributions import Normal

from vae_core.evaluation import linear_probe, neighbour_accuracy, sharpness

PROBES = [linear_probe, neighbour_accuracy]
every_probe = pytest.mark.parametrize("probe", PROBES)


def two_gaussians(n: int, apart: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    return torch.randn(n, 2, generator=draws) + apart * torch.stack((y, 0 * y), 1), y


def rings(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One class around the other: apart, but for no line."""
    draws = torch.Generator().manual_seed(seed)
    angle, y = 2 * pi * torch.rand(n, generator=draws), torch.arange(n) % 2
    circle = torch.stack((angle.cos(), angle.sin()), 1) * (1 + 2 * y)[:, None]
    return circle + 0.1 * torch.randn(n, 2, generator=draws), y


def test_linear_probe_of_two_gaussians_has_the_accuracy_of_the_best_classifier():
    apart, n = 2.0, 20_000
    best = Normal(0.0, 1.0).cdf(torch.tensor(apart / 2)).item()
    found = linear_probe(*two_gaussians(n, apart, 0), *two_gaussians(n, apart, 1))
    assert found == pytest.approx(best, abs=6 * (best * (1 - best) / n) ** 0.5)


def test_neighbour_accuracy_separates_rings_and_linear_probe_does_not():
    parts = (*rings(2000, 0), *rings(2000, 1))
    assert linear_probe(*parts) == pytest.approx(0.5, abs=0.06)
    assert neighbour_accuracy(*parts) == 1.0


def test_neighbour_accuracy_is_the_vote_from_a_table_of_distances():
    (codes, y), (codes_test, y_test) = two_gaussians(300, 1.0, 0), two_gaussians(200, 1.0, 1)
    nearest = torch.cdist(codes_test, codes).topk(7, largest=False).indices  # an odd number: no ties
    expected = (y[nearest].mode(1).values == y_test).double().mean().item()
    assert neighbour_accuracy(codes, y, codes_test, y_test, num_neighbours=7) == pytest.approx(expected, abs=1e-12)


def test_linear_probe_does_not_depend_on_the_units_of_a_code():
    (codes, y), (codes_test, y_test) = two_gaussians(400, 1.0, 0), two_gaussians(400, 1.0, 1)
    scale, shift = torch.tensor([1000.0, 1e-3]), torch.tensor([5.0, -3.0])
    there = linear_probe(codes * scale + shift, y, codes_test * scale + shift, y_test)
    assert there == pytest.approx(linear_probe(codes, y, codes_test, y_test), abs=0.005)


@every_probe
def test_linear_probe_and_neighbour_accuracy_without_the_class_are_chance(probe):
    (codes, _), (codes_test, _) = two_gaussians(2000, 0.0, 0), two_gaussians(2000, 0.0, 1)
    y = torch.arange(2000) % 10
    assert probe(codes, y, codes_test, y) == pytest.approx(0.1, abs=6 * (0.09 / 2000) ** 0.5)


@every_probe
def test_linear_probe_and_neighbour_accuracy_refuse_codes_without_their_classes(probe):
    codes, y = two_gaussians(20, 1.0, 0)
    with pytest.raises(ValueError, match="y must hold one entry for each image, got 19 for 20"):
        probe(codes, y[:-1], codes, y)


def test_sharpness_is_the_variance_of_scipys_laplacian():
    x = torch.rand(5, 3, 9, 7)
    expected = [laplace(image, axes=(1, 2))[:, 1:-1, 1:-1].var() for image in x.numpy()]
    assert sharpness(x) == pytest.approx(np.mean(expected), rel=1e-12)


def test_sharpness_of_bytes_is_that_of_their_grey_values():
    x = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    assert sharpness(x) == pytest.approx(sharpness(x.double() / 255), rel=1e-6)


def test_sharpness_of_a_ramp_is_zero_and_of_a_blurred_edge_smaller():
    ramp = torch.linspace(0, 1, 12).expand(1, 1, 12, 12)
    edge = (ramp > 0.5).double()
    blurred = torch.nn.functional.avg_pool2d(edge, 3, stride=1)
    assert sharpness(ramp) == pytest.approx(0, abs=1e-20)
    assert 0 < sharpness(blurred) < 0.2 * sharpness(edge)


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 1, 2, 8), (2, 8)])
def test_sharpness_refuses_images_without_inner_pixels(shape):
    with pytest.raises(ValueError, match="at least 3 by 3 pixels"):
        sharpness(torch.zeros(shape))


FORMS = {
    "arrays": lambda codes, y: (codes.numpy(), y.numpy()),
    "lists": lambda codes, y: (codes.tolist(), y.tolist()),
    "requires grad": lambda codes, y: (codes.clone().requires_grad_(), y),
    "labels as floats": lambda codes, y: (codes, y.double()),
    "a column-major array": lambda codes, y: (np.asfortranarray(codes.numpy()), tuple(y.tolist())),
}


@every_probe
@pytest.mark.parametrize("form", FORMS)
def test_linear_probe_and_neighbour_accuracy_take_what_people_have(probe, form):
    parts = two_gaussians(200, 1.5, 0), two_gaussians(200, 1.5, 1)
    expected = probe(*parts[0], *parts[1])
    assert probe(*FORMS[form](*parts[0]), *FORMS[form](*parts[1])) == expected


REFUSED = {
    "classes that are fractions": (lambda c, y: (c, y + 0.5, c, y), "y must be whole numbers"),
    "names of classes": (lambda c, y: (c, [str(k) for k in y.tolist()], c, y), "y must hold real numbers"),
    "masked codes": (
        lambda c, y: (np.ma.masked_array(c.numpy(), c.numpy() > 1), y, c, y),
        "codes must not be a masked",
    ),
    "codes that hold nan": (lambda c, y: (c / 0 * 0, y, c, y), "codes must be finite"),
    "codes of another width": (lambda c, y: (c, y, c[:, :1], y), "codes and codes_test must have shapes"),
    "images": (lambda c, y: (c[:, :, None], y, c[:, :, None], y), "codes and codes_test must have shapes"),
    "one class": (lambda c, y: (c, 0 * y, c, y), "y must hold at least two classes, got only 0"),
    "test classes of other data": (lambda c, y: (c, y, c, y[:3]), "y_test must hold one entry for each image"),
}


@every_probe
@pytest.mark.parametrize("case", REFUSED)
def test_linear_probe_and_neighbour_accuracy_refuse_what_has_no_meaning(probe, case):
    arguments, words = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=words):
        probe(*arguments(*two_gaussians(20, 1.0, 0)))


@pytest.mark.parametrize("count", [0, -1, 2.5, 21])
def test_neighbour_accuracy_refuses_a_number_of_neighbours_that_are_not_there(count):
    codes, y = two_gaussians(20, 1.0, 0)
    with pytest.raises(ValueError, match="num_neighbours must be"):
        neighbour_accuracy(codes, y, codes, y, count)


def test_sharpness_takes_arrays_and_images_that_require_grad():
    x = torch.rand(5, 3, 9, 7)
    assert sharpness(x.numpy()) == sharpness(x.requires_grad_()) == sharpness(x)
