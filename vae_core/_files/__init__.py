"""Files: data sets as they are kept, folders of images, saved models.

====================  ==============================================================
`stored`              data sets as torchvision keeps them, and our own cache of them
`folder`              folders of images: which files, in which split, in which size
`model_files`         what `models.save` writes and `models.load` reads
====================  ==============================================================
"""
