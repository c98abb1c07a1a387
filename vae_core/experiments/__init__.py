"""The recorded experiments, built on the core: what they are, how they run, what they leave behind.

====================  ==============================================================
`residual`            a residual convolutional VAE for a GPU
`contrastive`         the encoders and objectives of chapter 18's contrastive runs
`definition`          what defines an experiment: network, data, settings; what it costs
`registry`            the named experiments
`setups`              what an experiment is made of: model, images, objective
`records`             what a run leaves behind: records and weights
`figures`             the losses and other figures in a record
`run`                 train, test and record a named experiment
`results`             recorded results as the chapters load them
`command_line`        ``python -m vae_core``
====================  ==============================================================
"""
