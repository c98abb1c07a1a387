"""Real data for the linear models, and one model of each kind."""

import torch
from sklearn import datasets

from vae_core.linear import PCA, PPCA, FactorAnalysis

DATA = {name: torch.as_tensor(getattr(datasets, f"load_{name}")().data) for name in ("digits", "iris", "wine")}


def standardised(name: str) -> torch.Tensor:
    X = DATA[name][:, DATA[name].std(0) > 0]
    return (X - X.mean(0)) / X.std(0, correction=0)


def models(d: int) -> list:
    return [PCA(d), PCA(d, "em"), PPCA(d), PPCA(d, "em"), FactorAnalysis(d)]
