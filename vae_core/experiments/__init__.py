"""The recorded experiments, built on the core: their settings, their runs, and the files that a run writes.

====================  ==============================================================
`residual`            a residual convolutional VAE for a GPU
`contrastive`         the encoders and objectives of chapter 18's contrastive runs
`definition`          what defines an experiment: network, data, settings; what it costs
`registry`            the named experiments
`setups`              the parts of an experiment: model, images, objective
`records`             what a run writes: records and weights
`figures`             the losses and other measures in a record
`run`                 train, test and record a named experiment
`results`             the recorded results, for the chapters
`command_line`        ``python -m vae_core``
====================  ==============================================================
"""
