"""The control groups of this process: its own one and those that contain it. Each of them can have limits.

Out of scope: changing limits.
References: Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/cgroups.rst; cgroups(7) for /proc/self/cgroup.
"""

from __future__ import annotations

from pathlib import Path


def control_groups(root: Path = Path("/"), controller: str = "") -> list[Path]:
    """Return the folders of the process's control groups, innermost first.

    root: the folder that contains `proc` and `sys`. controller: of version 1, such as "memory"; "": version 2.
    The last folder is the one that is mounted. In a container, it is often the group of the container itself.
    """
    mount = root / "sys/fs/cgroup" / controller
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return [mount]
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controller in controllers.split(","):
            group = mount / path.strip("/")
            if ".." not in group.parts:
                return [folder for folder in (group, *group.parents) if folder.is_relative_to(mount)]
    return [mount]
