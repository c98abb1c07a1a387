"""Variational autoencoders as they stand on the page.

Where things are (each file imports only from files above it):

===================  ==================================================================
`runtime`            device, seeds, ranks; how stored images become a batch
`distributions`      Gaussians, their KL divergences, the density of a reparameterized draw
`data`               `load(name)`: digits, MNIST, Fashion-MNIST, CIFAR-10, SVHN
`likelihoods`        from a decoder's output to p(x|z)
`networks`           bare maps: `mlp`
`models`             `VAE`, `mlp_vae`
`objectives`         `elbo`, `iwae_bound`, `log_weights`: one value per datum, nats, maximised
`training`           `fit`: the one training loop
`evaluation`         figures on held-out data
`widgets`            sliders for notebooks
`experiments`        the named experiments and their records
`plots`              arrays in, Axes out
===================  ==================================================================

Import what you use from its file: ``from vae_core.objectives import elbo``.
"""

__version__ = "0.1.0"
