# SPDX-License-Identifier: Apache-2.0
"""Noisy Student Training (Xie et al., arXiv:1911.04252) in Keras 3.

This file imports nothing, so that `import noisy_student` and
`python main.py --help` answer at once; import the modules that you need.
"""

__version__ = "0.1.0"
