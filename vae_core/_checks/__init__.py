"""Checks of input: what users pass becomes a tensor, or an error says in one sentence why not.

====================  ==============================================================
`tensors`             from what holds real numbers to a tensor
`datasets`            map-style Datasets, read once into memory
`inputs`              data and labels: `as_images`, `as_labels`
`support`             whether data lie in the support of p(x|z)
`model_outputs`       what a user's model returns: types and shapes of distributions
`held_out`            held-out data in batches, each with its own conditions
`tables`              linear models as scikit-learn estimators: tables in and out
====================  ==============================================================
"""
