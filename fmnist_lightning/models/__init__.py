"""The nets, plain `nn.Module`s, and what belongs to a trained net: its weights, its card and its exports.

Nothing here knows Lightning's Trainer.
"""
