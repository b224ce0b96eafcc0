"""Design exploration under constraints: which network of our building blocks is best for its time.

In the spirit of Generative Synthesis (Wong et al., "FermiNets", 2018): a generator proposes, an
indicator function (`constraints`) says what is a LightDefectNet at all, an inquisitor (`costs`,
`fitting`) learns what the proposals are worth. Needs the `train` extra; knows nothing of the rest
of the training, so that it runs where only PyTorch, ONNX Runtime and scikit-learn are.
"""
