"""The layouts of ``linux/xfrm.h``: numbers, and packed structs whose sizes are checked on import.

SPI, ports and port masks are big-endian, all else is in host order. Padding at the end of a
struct is part of the message.
"""

from __future__ import annotations

import enum
import struct

from kinkd.kernel.netlink import sized


class Type(enum.IntEnum):
    """Message types (XFRM_MSG_*)."""

    NEWSA = 0x10
    DELSA = 0x11
    GETSA = 0x12
    NEWPOLICY = 0x13
    DELPOLICY = 0x14
    GETPOLICY = 0x15
    ALLOCSPI = 0x16
    ACQUIRE = 0x17
    EXPIRE = 0x18
    UPDPOLICY = 0x19
    UPDSA = 0x1A
    POLEXPIRE = 0x1B
    FLUSHSA = 0x1C
    FLUSHPOLICY = 0x1D


class Attribute(enum.IntEnum):
    """Attribute types (XFRMA_*): the ones written or read here."""

    ALG_AUTH = 1
    ALG_CRYPT = 2
    ENCAP = 4
    TMPL = 5
    SA = 6
    POLICY_TYPE = 16
    ALG_AEAD = 18
    ALG_AUTH_TRUNC = 20
    MARK = 21
    REPLAY_ESN_VAL = 23
    IF_ID = 31


class Group(enum.IntEnum):
    """Multicast groups (XFRMNLGRP_*)."""

    ACQUIRE = 1
    EXPIRE = 2
    SA = 3
    POLICY = 4


_SELECTOR = "16s16s2s2s2s2sHBBB3xiI"  # daddr saddr dport mask sport mask family len_d len_s proto
_ID = "16s4sB3x"  # daddr spi proto
_LIMITS = "8Q"  # octets, packets, seconds since added, seconds since used: soft and hard each
_CURRENT = "4Q"  # octets, packets, added, used
_SA = f"{_SELECTOR}{_ID}16s{_LIMITS}{_CURRENT}3IIIHBBB7x"
_POLICY = f"{_SELECTOR}{_LIMITS}{_CURRENT}IIBBBB4x"

SELECTOR = sized("xfrm_selector", _SELECTOR, 56)
USERSA = sized("xfrm_usersa_info", _SA, 224)
USERSPI = sized("xfrm_userspi_info", f"{_SA}II", 232)
USERSA_ID = sized("xfrm_usersa_id", "16s4sHBx", 24)
POLICY = sized("xfrm_userpolicy_info", _POLICY, 168)
POLICY_ID = sized("xfrm_userpolicy_id", f"{_SELECTOR}IB3x", 64)
TEMPLATE = sized("xfrm_user_tmpl", f"{_ID}H2x16sIBBBxIII", 64)
ACQUIRE = sized("xfrm_user_acquire", f"{_ID}16s{_SELECTOR}{_POLICY}IIII", 280)
EXPIRE = sized("xfrm_user_expire", f"{_SA}B7x", 232)
ENCAP = sized("xfrm_encap_tmpl", "H2s2s2x16s", 24)  # type, source port, destination port
REPLAY_ESN = sized("xfrm_replay_state_esn", "6I", 24)
ALGORITHM = sized("xfrm_algo", "64sI", 68)
ALGORITHM_ICV = sized("xfrm_algo_auth", "64sII", 72)  # and xfrm_algo_aead
MARK = sized("xfrm_mark", "II", 8)
NUMBER = sized("u32", "I", 4)
NOTHING = sized("nothing", "", 0)

# Where parts of the above begin.
SA_ID, SA_SOURCE, SA_LIMITS, SA_CURRENT, SA_SEQUENCE = 56, 80, 96, 160, 204
SA_REQID, SA_FLAGS = 208, 216
POLICY_TAIL, ACQUIRE_SELECTOR, ACQUIRE_INDEX, ACQUIRE_SEQUENCE = 152, 40, 96 + 156, 276
PORTS = struct.Struct(">HHHH")
REQID_FAMILY_MODE = struct.Struct("=IHB")
PRIORITY_INDEX_DIRECTION_ACTION = struct.Struct("=IIBB")

# Parts that are packed on their own.
USERSA_TAIL = sized("xfrm_usersa_info.lft", f"{_LIMITS}{_CURRENT}3IIIHBBB7x", 128)
USERSPI_TAIL = sized("xfrm_userspi_info.min", "II", 8)
POLICY_REST = sized("xfrm_userpolicy_info.lft", f"{_LIMITS}{_CURRENT}", 96)
POLICY_ID_TAIL = sized("xfrm_userpolicy_id.index", "IB3x", 8)

INFINITE = 2**64 - 1  # XFRM_INF
STATE_ALIGN4, STATE_ESN = 64, 128  # XFRM_STATE_*, flags of xfrm_usersa_info
ESP_IN_UDP = 2  # UDP_ENCAP_ESPINUDP
MAX_TEMPLATES = 6  # XFRM_MAX_DEPTH
ALLOW, BLOCK = 0, 1  # XFRM_POLICY_ALLOW, XFRM_POLICY_BLOCK
