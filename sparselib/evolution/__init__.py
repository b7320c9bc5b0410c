"""Evolving topologies: what leaves, what comes, and what carries the change out."""

from sparselib.evolution import drop as drop
from sparselib.evolution import grow as grow
from sparselib.evolution import on_device as on_device
from sparselib.evolution import resident as resident
from sparselib.evolution.algorithms import SET as SET
from sparselib.evolution.algorithms import GradientGrowth as GradientGrowth
from sparselib.evolution.algorithms import RigL as RigL
from sparselib.evolution.dst import DST as DST
from sparselib.evolution.engine import Evolution as Evolution
from sparselib.evolution.engine import Replaced as Replaced
from sparselib.evolution.liset import LiSET as LiSET
from sparselib.evolution.liset import feature_weights as feature_weights
from sparselib.evolution.plans import Plan as Plan
from sparselib.evolution.plans import evolve as evolve
from sparselib.evolution.schedule import CosineSchedule as CosineSchedule
from sparselib.evolution.schedule import GradualPruning as GradualPruning
from sparselib.evolution.schedule import Schedule as Schedule
from sparselib.evolution.strategies import Strategy as Strategy
