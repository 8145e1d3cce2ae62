# SPDX-License-Identifier: Apache-2.0
"""What /etc/nccl.conf shall hold: from the choices of a site, the adapters of a host, and the names that NCCL knows. Pure functions."""

from __future__ import annotations

import difflib
import re
import typing as t
from xml.etree import ElementTree

#: Variables of NCCL 2.29.7 without their prefix: the names in the library that the release's lock brings (strings libnccl.so.2). Newer ones are let
#: through with a warning; what is almost one of these is a slip.
_NAMES = """
ALGO ALLGATHERV_ENABLE ALLOC_P2P_NET_LL_BUFFERS BUFFSIZE CGA_CLUSTER_SIZE CHECK_MODE CHECK_POINTERS
CHUNK_SIZE COLLNET_ENABLE COLLNET_NODE_THRESHOLD COMM_BLOCKING COMM_ID COMM_SHRINK_SHARE_RESOURCES
COMM_SPLIT_SHARE_RESOURCES CONF_FILE CONNECT_ROUND_MAX_PEERS CROSS_NIC CTA_POLICY CUMEM_ENABLE
CUMEM_HOST_ENABLE DEBUG DEBUG_FILE DEBUG_SUBSYS DEBUG_TIMESTAMP_FORMAT DEBUG_TIMESTAMP_LEVELS
DISABLE_MEM_MANAGER DMABUF_ENABLE ENABLE_VERSION_CHECK ENV_PLUGIN GDAKI_USE_RELIABLE_DB GDRCOPY_ENABLE
GDRCOPY_FIFO_ENABLE GDRCOPY_FLUSH_ENABLE GDRCOPY_SYNC_ENABLE GDR_FLUSH_DISABLE GIN_COUNTER_POOL_SIZE
GIN_ENABLE GIN_ERROR_QUERY_SEC GIN_EXCLUSIVE_CONTEXTS GIN_GDAKI_NIC_HANDLER GIN_GDAKI_QP_DEPTH
GIN_NCONNECTIONS GIN_NCONTEXTS GIN_PLUGIN GIN_PROXY_QUEUE_SIZE GIN_SIGNAL_POOL_SIZE GIN_TYPE GRAPH_DUMP_FILE
GRAPH_DUMP_FILE_RANK GRAPH_FILE GRAPH_HELPER_DISABLE GRAPH_MIXING_SUPPORT GRAPH_REGISTER GROUP_CUDA_STREAM
HOSTID IB_ADAPTIVE_ROUTING IB_ADDR_FAMILY IB_ADDR_RANGE IB_AR_THRESHOLD IB_DATA_DIRECT IB_DEVICE_PCI_ORDER
IB_DISABLE IB_ECE_ENABLE IB_FIFO_TC IB_GID_INDEX IB_HCA IB_MAX_DEVS_PER_NIC IB_MERGE_NICS IB_MERGE_VFS
IB_MQP_RETRY_ALL IB_MQP_RETRY_CNT IB_MQP_RETRY_SLEEP_MSEC IB_PCI_RELAXED_ORDERING IB_PKEY
IB_PREPOST_RECEIVE_WORK_REQUESTS IB_QPS_PER_CONNECTION IB_RECEIVER_SIDE_MATCHING_SCHEME
IB_RESILIENCY_PORT_FAILOVER IB_RESILIENCY_PORT_FAILOVER_MAX_ATTEMPTS IB_RESILIENCY_PORT_FAILOVER_PROBE_DELAY
IB_RETRY_CNT IB_RETURN_ASYNC_EVENTS IB_ROCE_VERSION_NUM IB_ROUTABLE_FLID_GID_INDEX IB_SL
IB_SPLIT_DATA_ON_QPS IB_TC IB_TIMEOUT IB_USE_INLINE IB_WARN_RAIL_LOCAL IGNORE_CPU_AFFINITY
IGNORE_DISABLED_P2P L1_SHARED_MEMORY_CARVEOUT LAUNCH_MODE LAUNCH_ORDER_IMPLICIT LAUNCH_RACE_FATAL
LEGACY_CUDA_REGISTER LL128_BUFFSIZE LL128_C2C LL128_NTHREADS LL_BUFFSIZE LOCAL_REGISTER LSA_TEAM_SIZE
MAX_CTAS MAX_NCHANNELS MAX_NRINGS MAX_P2P_NCHANNELS MEM_SYNC_DOMAIN MIN_CTAS MIN_NCHANNELS MIN_NRINGS
MIN_P2P_NCHANNELS MNNVL_CLIQUE_ID MNNVL_ENABLE MNNVL_RAIL_PER_HOST MNNVL_SCATTER_NETS_ENABLE MNNVL_UUID
MULTI_SEGMENT_REGISTER NCHANNELS_PER_NET_PEER NET NETDEVS_POLICY NET_DISABLE_INTRA NET_FORCE_FLUSH
NET_FORCE_MERGE NET_GDR_C2C NET_GDR_LEVEL NET_GDR_READ NET_MERGE_LEVEL NET_OPTIONAL_RECV_COMPLETION
NET_OVERHEAD NET_PLUGIN NET_SHARED_BUFFERS NET_SHARED_COMMS NSOCKS_PERTHREAD NTHREADS NUM_RMA_CTX
NVB_DISABLE NVB_PRECONNECT NVLINK_UTIL_CENTRIC_SCHED_ENABLE NVLSTREE_MAX_CHUNKSIZE NVLS_CHUNKSIZE
NVLS_ENABLE NVLS_NCHANNELS NVTX_DISABLE OOB_NET_ENABLE OOB_NET_IFNAME P2P_DIRECT_DISABLE P2P_DISABLE
P2P_EPOCH_ENABLE P2P_LEVEL P2P_LL_THRESHOLD P2P_NET_CHUNKSIZE P2P_NVL_CHUNKSIZE P2P_PCI_CHUNKSIZE
P2P_PER_CHANNEL_NET_BW P2P_PXN_LEVEL P2P_READ_ENABLE P2P_SCHEDULE_GROUP_SIZE P2P_USE_CUDA_MEMCPY PAT_ENABLE
PROFILER_PLUGIN PROGRESS_APPENDOP_FREQ PROTO PROXY_APPEND_BATCH_SIZE PROXY_CPUSET PROXY_DUMP_SIGNAL PXN_C2C
PXN_DISABLE RAS_ADDR RAS_ENABLE RAS_TIMEOUT_FACTOR REPORT_CONNECT_PROGRESS RMA_PROXY_DUMP_SIGNAL
RMA_PROXY_QUEUE_SIZE RUNTIME_CONNECT SET_CPU_STACK_SIZE SET_STACK_SIZE SET_THREAD_NAME SHM_DISABLE
SHM_LOCALITY SHM_MEMCPY_MODE SHM_USE_CUDA_MEMCPY SINGLE_PROC_MEM_REG_ENABLE SOCKET_FAMILY SOCKET_IFNAME
SOCKET_INLINE SOCKET_MIN_TASKSIZE SOCKET_NTHREADS SOCKET_POLL_TIMEOUT_MSEC SOCKET_RCVBUF SOCKET_RETRY_CNT
SOCKET_RETRY_SLEEP_MSEC SOCKET_SNDBUF SYM_CE_THRESHOLD SYM_CTAS SYM_GIN_KERNELS_ENABLE SYM_KERNEL
SYM_NOWIN_ENABLE THREAD_THRESHOLDS TOPO_DUMP_FILE TOPO_DUMP_FILE_RANK TOPO_FILE TUNER_PLUGIN
UID_STAGGER_RATE UID_STAGGER_THRESHOLD UNPACK_DOUBLE_NCHANNELS WARN_ENABLE_DEBUG_INFO WIN_ENABLE WIN_STRIDE
WORK_ARGS_BYTES WORK_FIFO_BYTES
"""
VARIABLES = frozenset(_NAMES.split())

#: What these take, in NCCL's own words; their old numbers mean different things in different versions.
VALUES: dict[str, tuple[str, ...]] = {
    "NCCL_DEBUG": ("VERSION", "WARN", "INFO", "TRACE"),
    "NCCL_IB_DISABLE": ("0", "1"),
    "NCCL_NET_GDR_LEVEL": ("LOC", "PIX", "PXB", "PHB", "SYS"),
    "NCCL_P2P_LEVEL": ("LOC", "NVL", "PIX", "PXB", "PHB", "SYS"),
}
#: How like a known name an unknown one may be before it counts as a slip.
ALIKE = 0.85

#: Ways of GPUDirect RDMA beside DMA-BUF, and the first kernel that has that.
PEERMEM, NO_GPUDIRECT = "nvidia_peermem", "none"
DMABUF_KERNEL = [5, 12]
#: Interfaces with a smaller MTU send RoCE in packets of less than 4,096 bytes, the largest that it has.
ROCE_MTU = 4200

Port = dict[str, t.Any]


class Plan(t.NamedTuple):
    """The file's variables, what stands against them, what they cost, and how adapters reach GPU memory ("" where no adapter is used)."""

    settings: dict[str, str]
    refusals: list[str]
    warnings: list[str]
    gpudirect: str = ""


def plan(gpu: t.Mapping[str, t.Any], choices: t.Mapping[str, t.Any], network: t.Mapping[str, t.Any]) -> Plan:
    """The variables of a host that gpu_info describes; ``network`` is what nccl_network_info says, {} where one node is all."""
    refusals: list[str] = []
    warnings: list[str] = []
    settings = chosen(choices)
    ports = active_ports(gpu["infiniband"])
    if choices["nodes"] == "multi":
        settings |= between_nodes(gpu, choices, network, refusals, warnings)
    settings |= {name: text(value) for name, value in choices["settings"].items()}
    refusals += [problem for name, value in settings.items() if (problem := wrong(name, value))]
    warnings += costs(settings, gpu, ports, multi=choices["nodes"] == "multi")
    direct = gpudirect(gpu, network, wanted=choices["peermem"]) if "NCCL_IB_HCA" in settings else ""
    if direct == NO_GPUDIRECT:
        warnings.append(
            "GPUs and adapters cannot exchange data directly: neither is the nvidia module open on a kernel of 5.12 or later (DMA-BUF) nor nvidia_peermem"
            " loaded -> install the open driver, or set nccl_peermem: true"
        )
    return Plan(settings, refusals, warnings, direct)


def chosen(choices: t.Mapping[str, t.Any]) -> dict[str, str]:
    """The variables that a site chose by name; what is left to NCCL is not written."""
    settings = {"NCCL_DEBUG": choices["debug"]}
    if choices["ib_disable"]:
        settings["NCCL_IB_DISABLE"] = "1"
    levels = {"NCCL_NET_GDR_LEVEL": choices["net_gdr_level"], "NCCL_P2P_LEVEL": choices["p2p_level"]}
    settings |= {name: level for name, level in levels.items() if level != "auto"}
    if choices["topo_file"]:
        settings["NCCL_TOPO_FILE"] = choices["topo_file"]
    if choices["socket_interfaces"]:
        settings["NCCL_SOCKET_IFNAME"] = exactly(choices["socket_interfaces"])
    return settings


def between_nodes(
    gpu: t.Mapping[str, t.Any],
    choices: t.Mapping[str, t.Any],
    network: t.Mapping[str, t.Any],
    refusals: list[str],
    warnings: list[str],
) -> dict[str, str]:
    """What NCCL needs to be told where a replica spans hosts: the interface to meet over, and the adapters to send over."""
    settings: dict[str, str] = {}
    known = network.get("interfaces", [])
    if missing := [name for name in choices["socket_interfaces"] if name not in known]:
        refusals.append(
            f"nccl_socket_interfaces names {', '.join(missing)}, which this host has not; it has {', '.join(known) or 'none'} -> name one of these"
        )
    if not choices["socket_interfaces"] and network.get("default_interface"):
        settings["NCCL_SOCKET_IFNAME"] = exactly([network["default_interface"]])
    elif not choices["socket_interfaces"]:
        refusals.append(
            "this host has no default route that would name an interface to meet other nodes over -> set nccl_socket_interfaces"
        )
    if choices["ib_disable"]:
        return settings
    ports = adapters(gpu["infiniband"], choices["hcas"], gpu_nodes(gpu))
    if not_up := sorted(set(choices["hcas"]) - {name for port in ports for name in (port["device"], label(port))}):
        refusals.append(
            f"nccl_hcas names {', '.join(not_up)} without an active port -> ibstat; mend the link, or leave the choice to the role"
        )
    if not ports:
        warnings.append(
            "no InfiniBand or RoCE port is active, so NCCL goes over TCP between the nodes, many times slower -> ibstat, cables and the subnet manager"
        )
        return settings
    warnings += idle(gpu["infiniband"], ports)
    warnings += affinity(gpu, ports)
    settings["NCCL_IB_HCA"] = exactly([label(port) for port in ports])
    if ports[0]["link_layer"] == "Ethernet":
        settings |= roce(ports, network.get("gids", []), choices["roce_family"], refusals)
        warnings += narrow(ports)
    return settings


def gpudirect(gpu: t.Mapping[str, t.Any], network: t.Mapping[str, t.Any], *, wanted: bool) -> str:
    """The way by which adapters reach the memory of GPUs (GPUDirect RDMA): that of the kernel, or that of a module which is loaded or shall be."""
    version = [int(part) for part in re.findall(r"\d+", gpu.get("kernel", {}).get("release", ""))[:2]]
    if gpu["module"]["open"] and (not version or version >= DMABUF_KERNEL):
        return "DMA-BUF"
    return PEERMEM if network.get("peermem") or wanted else NO_GPUDIRECT


def active_ports(ports: list[Port]) -> list[Port]:
    return [port for port in ports if port["state"] == "ACTIVE" and port["physical_state"] == "LinkUp"]


def gpu_nodes(gpu: t.Mapping[str, t.Any]) -> dict[int, int]:
    """How many GPUs stand on each NUMA node, as far as the bus says."""
    nodes = [each["numa_node"] for each in gpu.get("pci_gpus", []) if each["numa_node"] is not None]
    return {node: nodes.count(node) for node in sorted(set(nodes))}


def affinity(gpu: t.Mapping[str, t.Any], ports: list[Port]) -> list[str]:
    """Where GPUs and the adapters that are used do not stand together: what is far goes over the link between the processors."""
    gpus = gpu_nodes(gpu)
    counts = {node: sum(port["numa_node"] == node for port in ports) for node in gpus}
    if len(gpus) < 2 or None in {port["numa_node"] for port in ports}:
        return []
    shares = {counts[node] * gpus[min(gpus)] == counts[min(gpus)] * gpus[node] for node in gpus}
    if shares == {True} and sum(counts.values()) == len(ports):
        return []
    told = "; ".join(
        f"NUMA node {node} has {gpus.get(node, 0)} GPUs and {sum(port['numa_node'] == node for port in ports)} adapters"
        for node in sorted({*gpus, *(port["numa_node"] for port in ports)})
    )
    return [f"GPUs and adapters do not stand together: {told} -> see the slots of the adapters and nvidia-smi topo -m"]


def adapters(ports: list[Port], wanted: list[str], nodes: t.Container[int | None] = ()) -> list[Port]:
    """The ports to send over, by NUMA node: those that a site names (device, or device:port), else all of the highest rate and of one kind.

    A storage or management adapter is slower than those that stand beside the GPUs, and NCCL would wait for the slowest. One on a NUMA node without
    GPUs (``nodes`` are those with) is left out where others stand beside them.
    """
    up = active_ports(ports)
    if wanted:
        up = [port for port in up if port["device"] in wanted or label(port) in wanted]
    elif up:
        best = max(up, key=lambda port: (port["rate_gbps"] or 0, port["link_layer"] == "InfiniBand"))
        up = [port for port in up if (port["rate_gbps"], port["link_layer"]) == (best["rate_gbps"], best["link_layer"])]
        up = [port for port in up if port["numa_node"] in nodes] or up
    return sorted(
        up, key=lambda port: (port["numa_node"] is None, port["numa_node"] or 0, natural(port["device"]), port["port"])
    )


def idle(ports: list[Port], used: list[Port]) -> list[str]:
    """Ports that are not up and of the kind that is used: their link is missing from the rails."""
    down = [port for port in ports if port not in active_ports(ports) and port["link_layer"] == used[0]["link_layer"]]
    said = [f"{label(port)} is {port['state']} ({port['physical_state']})" for port in down]
    return (
        [f"{', '.join(said)}, while {len(used)} ports carry NCCL -> see cable and switch port, if it is meant to"]
        if said
        else []
    )


def roce(ports: list[Port], gids: list[dict[str, t.Any]], family: str, refusals: list[str]) -> dict[str, str]:
    """How NCCL finds the address of a RoCE port: the index where all ports agree on one, else version and family, by which it looks for itself."""
    indexes: set[int] = set()
    for port in ports:
        fitting = [
            gid["index"]
            for gid in gids
            if (gid["device"], gid["port"]) == (port["device"], port["port"])
            and gid["type"] == "RoCE v2"
            and gid["family"] == family
        ]
        if not fitting:
            refusals.append(
                f"{label(port)} has no RoCE v2 address of family {family} -> give its interface {port['netdev'] or ''} an address, or set nccl_roce_family"
            )
        indexes |= set(fitting[:1])
    settings = traffic_class(ports, refusals)
    if len(indexes) == 1:
        return settings | {"NCCL_IB_GID_INDEX": str(indexes.pop())}
    families = {"ipv4": "AF_INET", "ipv6": "AF_INET6"}
    return settings | {"NCCL_IB_ROCE_VERSION_NUM": "2", "NCCL_IB_ADDR_FAMILY": families[family]}


def traffic_class(ports: list[Port], refusals: list[str]) -> dict[str, str]:
    """The traffic class that the host sets for RoCE, which NCCL does not ask for; nothing where it sets none."""
    found = {label(port): port.get("traffic_class") for port in ports}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{name} {'none' if value is None else value}" for name, value in found.items())
        refusals.append(
            f"the ports send with different traffic classes ({told}) -> set one for all of them (cma_roce_tos)"
        )
        return {}
    value = next(iter(found.values()))
    return {} if value is None else {"NCCL_IB_TC": str(value)}


def narrow(ports: list[Port]) -> list[str]:
    """RoCE ports whose interface cuts their packets short."""
    told = [
        f"{label(port)} ({port['netdev']} {port['mtu']})" for port in ports if (port.get("mtu") or ROCE_MTU) < ROCE_MTU
    ]
    if not told:
        return []
    return [
        f"the MTU of {', '.join(told)} is below {ROCE_MTU}, so RoCE sends small packets -> raise it on hosts and switches"
    ]


def wrong(name: str, value: str) -> str:
    """Why a variable cannot stand in the file, with a remedy; "" where it can."""
    if not name.startswith("NCCL_"):
        near = closest(f"NCCL_{name.upper().removeprefix('NCCL_')}")
        return f"{name} is no variable of NCCL -> " + (
            f"did you mean {near}?" if near else "/etc/nccl.conf is for NCCL alone"
        )
    if name.removeprefix("NCCL_") not in VARIABLES and (near := closest(name)):
        return f"{name} is not known to NCCL, which would pass over it without a word -> did you mean {near}?"
    if value == "" or "\n" in value:
        return f"{name} has no value on one line -> leave it out, or give it one"
    known = VALUES.get(name)
    if known and value not in known:
        return f"{name} is {value} -> write {', '.join(known[:-1])} or {known[-1]}" + (
            "; numbers are the old form, of which 5 means SYS" if "SYS" in known and value.isdecimal() else ""
        )
    return ""


def closest(name: str) -> str:
    """The known variable that a name is a slip of, "" where it is like none."""
    found = difflib.get_close_matches(name.removeprefix("NCCL_"), sorted(VARIABLES), 1, ALIKE)
    return f"NCCL_{found[0]}" if found else ""


def costs(settings: t.Mapping[str, str], gpu: t.Mapping[str, t.Any], ports: list[Port], *, multi: bool) -> list[str]:
    """What the variables cost, each in one line with its remedy."""
    said = [
        f"{name} is not among the variables of NCCL 2.29 -> see that the release's NCCL knows it"
        for name in settings
        if name.startswith("NCCL_") and name.removeprefix("NCCL_") not in VARIABLES and not closest(name)
    ]
    if settings["NCCL_DEBUG"] in ("INFO", "TRACE"):
        said.append(
            f"NCCL_DEBUG={settings['NCCL_DEBUG']} logs every communicator of every worker -> WARN for production"
        )
    if settings.get("NCCL_P2P_LEVEL") == "LOC":
        said.append(
            "NCCL_P2P_LEVEL=LOC takes the NVLinks from NCCL: all goes through the memory of the host -> leave it at auto"
        )
    if settings.get("NCCL_P2P_LEVEL") == "NVL" and not gpu["pci_nvswitches"]:
        said.append(
            "NCCL_P2P_LEVEL=NVL forbids PCIe between GPUs that no NVLink joins, and this host has no NVSwitch -> leave it at auto"
        )
    if settings.get("NCCL_IB_DISABLE") == "1" and ports:
        names = ", ".join(label(port) for port in ports)
        said.append(
            f"NCCL_IB_DISABLE=1 leaves the active ports {names} unused"
            + (" and sends all between the nodes over TCP" if multi else "; on one node it changes nothing")
            + " -> leave it out"
        )
    if level := settings.get("NCCL_NET_GDR_LEVEL"):
        hurt = (
            "turns GPUDirect RDMA off"
            if level == "LOC"
            else "overrules the distance up to which NCCL lets GPU and adapter talk directly"
        )
        said.append(f"NCCL_NET_GDR_LEVEL={level} {hurt} -> leave it at auto")
    if "NCCL_TOPO_FILE" in settings:
        said.append(
            "NCCL_TOPO_FILE replaces what NCCL reads from the host: right for virtual machines, stale after a change of hardware -> unset on bare metal"
        )
    interface = settings.get("NCCL_SOCKET_IFNAME", "=")
    if not interface.startswith(("=", "^=")):
        said.append(
            f"NCCL_SOCKET_IFNAME={interface} matches every interface that begins so -> begin it with = for exact names"
        )
    return said


def topology_error(document: str) -> str:
    """Why a text is no topology of NCCL, "" where it is one."""
    try:
        root = ElementTree.fromstring(document)  # noqa: S314 (a file of the site's own controller)
    except ElementTree.ParseError as error:
        return f"is no XML: {error}"
    return "" if root.tag == "system" else f"has the root element <{root.tag}>, not <system>"


def text(value: t.Any) -> str:
    """A YAML value as NCCL reads it."""
    return str(int(value)) if isinstance(value, bool) else "" if value is None else str(value)


def exactly(names: t.Iterable[str]) -> str:
    """A list that NCCL compares whole; without the sign each would be a prefix, so that mlx5_1 would be mlx5_10 as well."""
    return "=" + ",".join(names)


def label(port: Port) -> str:
    return f"{port['device']}:{port['port']}"


def natural(name: str) -> tuple[str, int]:
    """mlx5_2 before mlx5_10."""
    stem = name.rstrip("0123456789")
    return stem, int(name[len(stem) :] or 0)
