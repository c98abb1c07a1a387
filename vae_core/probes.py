"""What a code, or a picture, is good for: judged from outside, without a model."""

import torch
from torch import Tensor


def linear_probe(codes: Tensor, y: Tensor, codes_test: Tensor, y_test: Tensor) -> float:
    """The share of test data that multinomial logistic regression on the training codes gets right.

    Codes are (N, d), standardised by the training codes' means and deviations; classes are (N,). The penalty is
    scikit-learn's default. It tells how much of the class is in the codes *linearly*: a class in a ring is missed.
    Raises ValueError where codes and classes differ in number. Source: Chen §4.2 claims a result of this kind.
    """
    from sklearn.linear_model import LogisticRegression  # not at start-up, which most commands pay without probing
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, tol=1e-3))
    return _accuracy(probe, codes, y, codes_test, y_test)


def neighbour_accuracy(codes: Tensor, y: Tensor, codes_test: Tensor, y_test: Tensor, num_neighbours: int = 10) -> float:
    """The share of test data to which most of their nearest training codes (Euclidean) give the right class.

    Shapes and errors are those of `linear_probe`; it tells how far the classes keep apart, in whatever form.
    Source: Chen §4.2 and §4.3 read this off pictures.
    """
    from sklearn.neighbors import KNeighborsClassifier

    return _accuracy(KNeighborsClassifier(num_neighbours, algorithm="brute"), codes, y, codes_test, y_test)


def _accuracy(classifier, codes: Tensor, y: Tensor, codes_test: Tensor, y_test: Tensor) -> float:
    if len(codes) != len(y) or len(codes_test) != len(y_test):
        counts = f"{len(codes)} and {len(y)}, {len(codes_test)} and {len(y_test)}"
        raise ValueError(f"every code needs its class, got {counts}")
    classifier.fit(codes.cpu().numpy(), y.cpu().numpy())
    return float(classifier.score(codes_test.cpu().numpy(), y_test.cpu().numpy()))


def sharpness(x: Tensor) -> float:
    r"""The mean over images of the variance of their Laplacian: edges make it large, blur makes it small.

    .. math:: \frac1N\sum_n \operatorname{Var}_{ij}\big(x_{i+1,j}+x_{i-1,j}+x_{i,j+1}+x_{i,j-1}-4x_{ij}\big)

    over the inner pixels and channels. `x` is float in [0, 1] or uint8, (N, C, H, W) with sides of at least 3. Raises
    ValueError for other shapes. Source: Chen §4.3 calls reconstructions blurry; the measure is Pech-Pacheco et al.'s.
    """
    if x.dim() != 4 or len(x) == 0 or min(x.shape[2:]) < 3:
        raise ValueError(f"x must be images (N, C, H, W) of at least 3 by 3 pixels, got shape {tuple(x.shape)}")
    x = x / 255 if x.dtype == torch.uint8 else x
    centre = x[..., 1:-1, 1:-1]
    around = x[..., 2:, 1:-1] + x[..., :-2, 1:-1] + x[..., 1:-1, 2:] + x[..., 1:-1, :-2]
    return (around - 4 * centre).double().flatten(1).var(1, correction=0).mean().item()
