"""Variational autoencoders as they stand on the page.

Where things are (a file imports only from files above it):

===================  ==================================================================
`runtime`            device, seeds, ranks; how stored images become a batch
`distributions`      Gaussians, their KL divergences, the density of a reparameterized draw
`data`               `load(name)`: digits, MNIST, Fashion-MNIST, CIFAR-10, SVHN
`_estimator`         linear models as scikit-learn estimators: tables in and out, parameters
`_missing`           rows of which a part is observed, and EM's step for them
`linear_gaussian`    what the linear models share
`linear`             `PCA`, `PPCA`, `FactorAnalysis`, exactly
`exact`              `QuadratureModel`: nonlinear models with one latent number, exactly
`gradients`          estimators of a gradient under the expectation: `score_function`, `pathwise`, ...
`pixels`             laws of pixels that torch does not have, or not in 32 bits
`likelihoods`        from a decoder's output to p(x|z)
`networks`           bare maps: `mlp`, `conv_encoder`, `conv_decoder`
`models`             `VAE` and `Autoencoder`; `mlp_vae`, `conv_vae`, `mlp_autoencoder` build them
`objectives`         `elbo`, `iwae_bound`, `log_weights`: one value per datum, nats, maximised
`contrastive`        codes that agree on two views of an image: `nt_xent`, `info_nce`, views
`inference`          q datum by datum, variational EM, annealed importance sampling
`checkpoints`        what an interrupted training needs to go on
`steps`              one step of training, on a CPU, a CUDA device or several processes
`training`           `fit`: the one training loop
`probes`             what a code is good for: `linear_probe`, `neighbour_accuracy`
`evaluation`         figures on held-out data: losses, log p(x), gaps, active units, robustness
`plots`              arrays in, Axes out
`widgets`            sliders for notebooks, decoded by the kernel: any decoder
`explorer`           the latent explorer, decoded in the reader's browser: dense decoders
`flipbook`           sliders over pictures drawn beforehand: anything, with no kernel
`catalogue`          the named experiments: what each trains, on what
`records`            what a run leaves behind: records and weights
`setups`             what a named experiment is made of: model, images, objective
`experiments`        running the named experiments
`results`            recorded results as the chapters load them
`__main__`           the command line: ``python -m vae_core``
===================  ==================================================================

Import what you use from its file: ``from vae_core.objectives import elbo``.
"""

__version__ = "0.1.0"
