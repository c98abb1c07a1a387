"""The recorded experiments, built on the core: what they are, how they run, what they leave behind.

====================  ==============================================================
`residual`            a residual convolutional VAE for a GPU
`contrastive`         the encoders and objectives of chapter 18's contrastive runs
`registry`            the named experiments: what each trains, on what, with which settings
`setups`              what a named experiment is made of: model, images, objective
`records`             what a run leaves behind: records and weights
`run`                 train, test and record a named experiment
`results`             recorded results as the chapters load them
`command_line`        ``python -m vae_core``
====================  ==============================================================
"""
