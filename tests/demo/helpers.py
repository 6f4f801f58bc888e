"""A demonstration of a few seconds."""

from fxhash.demo.work import Work

WORK = Work(
    title="ResNet-8 on digits of scikit-learn",
    data="digits",
    image_size=None,
    model="resnet8",
    width=8,
    recipe="digits",
    compressions=(0.3, 0.2),
    rivalled=0.3,
    # Of so few weights the largest are a larger share.
    cached=0.9,
)
