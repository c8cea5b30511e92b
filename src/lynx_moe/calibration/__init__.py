"""What a model's experts do on data: statistics of their outputs, and the file that calibrated policies take them from.

The names of the tensors and what they mean are in `policies/calibrated.py`.
"""
