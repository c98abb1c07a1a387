"""The parts of `training.fit`.

====================  ==============================================================
`fingerprints`        whether data and functions are those of an earlier run
`settings`            the arguments of `fit`, checked; its device and its optimizer
`checkpoints`         what an interrupted run needs to continue
`support`             whether data lie in the support of the objective's likelihood
`steps`               one step, on a CPU, a CUDA device or several processes
`epochs`              one epoch: its steps, its row of the history, finite or not
`early_stopping`      stop by a validation loss and restore the best state
====================  ==============================================================
"""
