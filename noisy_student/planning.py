# SPDX-License-Identifier: Apache-2.0
"""placeholder"""


def plan(config):
    raise NotImplementedError
