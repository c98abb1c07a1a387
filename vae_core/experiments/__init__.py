"""The recorded experiments, built on the core: their settings, their runs, and the files that a run writes.

====================  ==============================================================
`residual`            a residual convolutional VAE for a GPU
`contrastive`         the encoders and objectives of chapter 18's contrastive runs
`registry`            the named experiments: what each trains, on what, with which settings
`setups`              the parts of a named experiment: model, images, objective
`records`             what a run writes: records and weights
`run`                 train, test and record a named experiment
`results`             the recorded results, for the chapters
`command_line`        ``python -m vae_core``
====================  ==============================================================
"""
