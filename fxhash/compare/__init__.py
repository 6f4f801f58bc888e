"""One model in each form in which it could be deployed: dense, with weights in 8 bits, and compressed to several sizes.

What is compared is what doesn't depend on training: sizes, work and latency. Accuracy takes training.
"""
