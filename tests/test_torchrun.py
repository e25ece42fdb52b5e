"""What torchrun does to the commands that it starts."""

import re

import pytest
from torch.distributed.run import get_args_parser

from evaluate import embed
from evaluate import run as evaluation
from train import main as training


@pytest.mark.parametrize("command", [training, evaluation, embed], ids=["train", "evaluate", "embed"])
def test_torchrun_takes_none_of_our_flags_for_its_own(command, capsys):
    """It completes abbreviated flags, those behind our script's name too."""
    with pytest.raises(SystemExit):
        command.main(["--help"])
    ours = set(re.findall(r"^ +(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    assert len(ours) > 5
    theirs = get_args_parser()._option_string_actions
    assert not [(flag, option) for flag in ours for option in theirs if option.startswith(flag)]
