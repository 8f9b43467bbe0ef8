"""The nets, plain `nn.Module`s, and what belongs to a trained net: its weights with their card, and its exports.

Training, metrics and anything that knows Lightning's Trainer belong elsewhere: in training/.
"""
