"""Become a command that the kernel ends as soon as the process that started it has died.

Args: signal number, user name or empty, the command.
"""

import ctypes
import os
import pwd
import signal
import sys

PR_SET_PDEATHSIG = 1

farewell, user, *command = sys.argv[1:]
parent = os.getppid()
prctl = ctypes.CDLL(None).prctl
if user:
    account = pwd.getpwnam(user)
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
# A change of user clears the setting, so it is made after that.
prctl(PR_SET_PDEATHSIG, int(farewell))
if os.getppid() != parent:
    os.kill(os.getpid(), signal.SIGKILL)
os.execv(command[0], command)
