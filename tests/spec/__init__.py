# SPDX-License-Identifier: Apache-2.0
"""What holds for every role, playbook and module: the interface, its documentation and the house rules say the same."""
