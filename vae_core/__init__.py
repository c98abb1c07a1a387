"""Variational autoencoders as they stand on the page.

Where things are (a file imports only from files above it):

===================  ==================================================================
`runtime`            device, seeds, ranks; how stored images become a batch
`distributions`      Gaussians, their KL divergences, the density of a reparameterized draw
`data`               `load(name)`: digits, MNIST, Fashion-MNIST, CIFAR-10, SVHN
`linear`             `PCA`, `PPCA`, `FactorAnalysis`, exactly; `linear_gaussian` is what they share
`exact`              `QuadratureModel`: nonlinear models with one latent number, exactly
`gradients`          estimators of a gradient under the expectation: `score_function`, `pathwise`, ...
`likelihoods`        from a decoder's output to p(x|z)
`networks`           bare maps: `mlp`, `conv_encoder`, `conv_decoder`
`models`             `VAE` and `Autoencoder`; `mlp_vae`, `conv_vae`, `mlp_autoencoder` build them
`objectives`         `elbo`, `iwae_bound`, `log_weights`: one value per datum, nats, maximised
`contrastive`        codes that agree on two views of an image: `nt_xent`, `info_nce`, views
`inference`          q datum by datum, variational EM, annealed importance sampling
`training`           `fit`: the one training loop; its parts are `steps` and `checkpoints`
`evaluation`         figures on held-out data: losses, log p(x), gaps, active units, robustness
`probes`             what a code is good for: `linear_probe`, `neighbour_accuracy`
`widgets`            sliders for notebooks, decoded by the kernel: any decoder
`explorer`           the latent explorer, decoded in the reader's browser: dense decoders
`flipbook`           sliders over pictures drawn beforehand: anything, with no kernel
`plots`              arrays in, Axes out
`catalogue`          the named experiments: what each trains, on what
`records`            what a run leaves behind: records and weights
`experiments`        running the named experiments
`results`            recorded results as the chapters load them
===================  ==================================================================

Import what you use from its file: ``from vae_core.objectives import elbo``.
"""

__version__ = "0.1.0"
