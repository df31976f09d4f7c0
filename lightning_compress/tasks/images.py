"""Classification of images: the tasks of texts, with the head of another model class."""

from lightning_compress.tasks.classification import Classification
from lightning_compress.tasks.multi_label import MultiLabelClassification
from lightning_compress.tasks.regression import Regression

_NAME, _AUTO_CLASS = "image-classification", "AutoModelForImageClassification"


class ImageClassification(Classification):
    """One class per image."""

    name = _NAME
    auto_class = _AUTO_CLASS


class MultiLabelImageClassification(MultiLabelClassification):
    """Any number of labels per image."""

    name = _NAME
    auto_class = _AUTO_CLASS


class ImageRegression(Regression):
    """Numbers of an image."""

    name = _NAME
    auto_class = _AUTO_CLASS
