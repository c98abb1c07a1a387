"""Widgets for notebooks and pages, with their JavaScript and CSS.

====================  ==============================================================
`sliders`             sliders that decode with the running kernel: any decoder
`explorer`            the latent explorer, decoded in the browser: dense decoders
`flipbook`            sliders over figures drawn beforehand: no kernel needed
====================  ==============================================================
"""
