"""Models whose decoders are exact in 16-bit floats."""

import torch
from torch import nn

from vae_core.models import VAE, mlp_vae

SHAPE = (1, 3, 4)


def lively(latent_dim: int = 2, shape=SHAPE, **options) -> VAE:
    """An untrained model, in evaluation mode, of which every folded number matters."""
    model = mlp_vae(shape, latent_dim, hidden=(9, 7), **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            for values in (module.weight.data, module.running_var):
                values.uniform_(0.5, 2.0)
            for values in (module.bias.data, module.running_mean):
                values.normal_()
    model.decoder[-1].weight.data.normal_()
    return model.eval()


def make_exact(model: VAE) -> VAE:
    """Round every number such that what is folded has an exact float16, and the running deviations are 1/2, 1 or 2."""
    for parameter in model.parameters():
        parameter.data.mul_(8).round_().div_(8)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.mul_(8).round_().div_(8)
            module.running_var.copy_(4.0 ** torch.randint(-1, 2, module.running_var.shape)).sub_(module.eps)
            if module.weight is not None:
                module.weight.data.copy_(2.0 ** torch.randint(-1, 2, module.weight.shape))
    return model
