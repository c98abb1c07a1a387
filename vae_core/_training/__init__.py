"""What only `training.fit` uses.

====================  ==============================================================
`fingerprints`        whether data and functions are those that a run was begun with
`settings`            the settings of a run, checked, and the schedule of its steps
`checkpoints`         what an interrupted run needs to go on
`support`             whether data lie where the objective's likelihood is defined
`steps`               one step, on a CPU, a CUDA device or several processes
`epochs`              one epoch: its steps, its row of the history, finite or not
`early_stopping`      stop by a validation loss and put the best state back
====================  ==============================================================
"""
