"""Losses over TensorDicts; their sum is the paper's Eq. 9."""

from rambo_trl.objectives.adversarial_model import AdversarialModelLoss
from rambo_trl.objectives.behaviour_anchor import BehaviourAnchorLoss
from rambo_trl.objectives.combo import COMBOLoss
from rambo_trl.objectives.deterministic_backup import DeterministicBackupSACLoss
from rambo_trl.objectives.fitted_q import FittedQEvaluationLoss
from rambo_trl.objectives.likelihood_budget import LikelihoodBudget
from rambo_trl.objectives.mobile import MOBILELoss
from rambo_trl.objectives.model_likelihood import EnsembleModelLoss
from rambo_trl.objectives.model_trust import ModelTrustLoss
from rambo_trl.objectives.rebrac import ReBRACLoss
from rambo_trl.objectives.value_budget import ValueBudget

__all__ = [
    "AdversarialModelLoss",
    "EnsembleModelLoss",
    "ModelTrustLoss",
    "LikelihoodBudget",
    "ValueBudget",
    "BehaviourAnchorLoss",
    "COMBOLoss",
    "DeterministicBackupSACLoss",
    "FittedQEvaluationLoss",
    "MOBILELoss",
    "ReBRACLoss",
]
