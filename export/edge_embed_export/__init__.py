"""The workstation's side: a trained model in, a small bundle and the price of making it small out.

sources     what trainers leave behind, read into one ``Source``
codecs      how its rows are stored
graphs      portable graphs over the stored rows
quality     what that cost
exporter    ``export``: all of it, in the order that makes the bundle true
demo        the whole journey on a real model
"""
