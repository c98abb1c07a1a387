"""Variational autoencoders, with the names and symbols of the book's pages.

The flat core (a file imports only from files above it):

=====================  =========================================================================
`runtime`              device, seeds, ranks; how stored images become a batch
`data`                 `load(name)` and `from_folder(path, size)`: real images with their labels
`distributions`        Gaussians, their KL divergences, the density of a reparameterized draw
`pixel_distributions`  distributions of pixels and counts that torch lacks, or computes inaccurately
`likelihoods`          from a decoder's output to p(x|z)
`networks`             plain networks: `mlp`, `conv_encoder`, `conv_decoder`
`models`               `VAE`, `ConditionalVAE` and `Autoencoder`, and the functions that build them
`objectives`           `elbo`, `iwae_bound`, `log_weights`: one value per datum, nats, maximised
`_detached`            a distribution without its gradients
`gradients`            estimators of the gradient of an expectation: `score_function`, `pathwise`, ...
`inference`            q for each datum, variational EM, annealed importance sampling
`evaluation`           measures on held-out data: losses, log p(x), gaps, active units, probes
`_missing`             rows with missing values
`_linear_gaussian`     what the linear models share
`linear`               `PCA`, `PPCA`, `FactorAnalysis`, exactly
`quadrature`           `QuadratureModel`: nonlinear models with one latent number, exactly
`training`             `fit`: the one training loop
`plots`                arrays in, Axes out
=====================  =========================================================================

The core uses `_checks` (checks of input), `_files` (files on disk) and `_training` (the parts of `fit`). Two folders
use the core: `interactive` holds the widgets, `experiments` the recorded runs and the command line.
Import what you use from its file: ``from vae_core.objectives import elbo``.

In docstrings a batch has shape (B, ...) and values are in nats unless they say otherwise. A function whose first line
or module states the shapes of all its arguments has no list of them.

Sources that docstrings abbreviate:

- Chen: Chen (2020), "Variational Auto-encoders with Application to Unsupervised Representation Learning", a thesis;
- lecture notes: "Lecture notes on variational auto-encoders (VAEs)", which name neither author nor year;
- Saleh: Saleh (2019), "On Variational Autoencoders: Generative Models for Dimension Reduction", a report;
- Irvin: Irvin (2016), "Auto-Encoding Variational Bayes", a report;
- VI slides: Linderman (2023), "Variational Autoencoders (VAEs)", slides of STATS 305C at Stanford;
- papers by authors and year: the bibliography of the book lists them.
"""

__version__ = "0.2.0"
