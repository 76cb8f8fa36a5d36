"""Contract tests of the package, to be run on models of your own.

from nextitem.testing import check_recommender

def test_my_model():
    check_recommender("my_package.my_module:MyModel", known_answers=["cycle"])
"""

from nextitem.testing.recommenders import CHECKS, check_recommender
from nextitem.testing.rich_log import longer_log, rich_log

__all__ = ["CHECKS", "check_recommender", "longer_log", "rich_log"]
