-- KINK, Kerberized Internet Negotiation of Keys, as RFC 4430 has it: for Wireshark and tshark
-- from 3.6 on.
--
-- Wireshark's own dissector "kink" follows a draft whose header lays its fields out otherwise. This
-- one takes UDP port 910 in its place; its fields are named kink4430.*, so that the two never mix.
--
-- AP-REQ, AP-REP, KRB-ERROR and tickets go to the built-in Kerberos dissector, which decrypts what
-- a keytab opens. KINK_ISAKMP payloads outside KINK_ENCRYPT go to the built-in ISAKMP dissector.
-- What is inside KINK_ENCRYPT stays closed here: `kinkctl decode --keytab` opens it.
--
-- Whatever the octets are, no Lua error may come of them: every length is compared with the octets
-- that are there before it is used, and other dissectors are called under pcall.

local kink = Proto("kink4430", "Kerberized Internet Negotiation of Keys (RFC 4430)")

local KINK_PORT = 910 -- RFC 4430 §11
local HEADER = 16 -- octets of the message's header (§4)
local PAYLOAD_HEADER = 4 -- octets of a payload's header (§4.2)
local VERSION = 1 -- §4
local DOI_IPSEC = 1 -- RFC 2407 §6.1
-- Payloads shown of one chain. No exchange of RFC 4430 §6 needs a tenth of it, and a hostile
-- message must not fill the tree.
local MAX_PAYLOADS = 256

-- RFC 4430 §4
local TYPES = {
    { 0, 0, "RESERVED" },
    { 1, 1, "CREATE" },
    { 2, 2, "DELETE" },
    { 3, 3, "REPLY" },
    { 4, 4, "GETTGT" },
    { 5, 5, "ACK" },
    { 6, 6, "STATUS" },
    { 7, 127, "RESERVED TO IANA" },
    { 128, 255, "Private Use" },
}

-- §4.2
local DONE, AP_REQ, AP_REP, KRB_ERROR, TGT_REQ, TGT_REP, ISAKMP, ENCRYPT, ERROR = 0, 1, 2, 3, 4, 5, 6, 7, 8
local PAYLOADS = {
    { 0, 0, "KINK_DONE" },
    { 1, 1, "KINK_AP_REQ" },
    { 2, 2, "KINK_AP_REP" },
    { 3, 3, "KINK_KRB_ERROR" },
    { 4, 4, "KINK_TGT_REQ" },
    { 5, 5, "KINK_TGT_REP" },
    { 6, 6, "KINK_ISAKMP" },
    { 7, 7, "KINK_ENCRYPT" },
    { 8, 8, "KINK_ERROR" },
    { 9, 127, "RESERVED TO IANA" },
    { 128, 255, "Private Use" },
}

-- §4.2.8
local ERRORS = {
    { 0, 0, "KINK_OK" },
    { 1, 1, "KINK_PROTOERR" },
    { 2, 2, "KINK_INVDOI" },
    { 3, 3, "KINK_INVMAJ" },
    { 4, 4, "RESERVED" },
    { 5, 5, "KINK_INTERR" },
    { 6, 6, "KINK_BADQMVERS" },
    { 7, 7, "KINK_U2UDENIED" },
    { 8, 8191, "RESERVED TO IANA" },
    { 8192, 8192, "KINK_REQUEST_TOO_SHORT" }, -- Private Use, of kinkd
    { 8193, 16383, "Private Use" },
    { 16384, 4294967295, "RESERVED" },
}

-- RFC 2408 §3.1: what Quick Mode payloads may be
local QUICK_MODE = {
    [0] = "NONE",
    [1] = "Security Association",
    [2] = "Proposal",
    [3] = "Transform",
    [4] = "Key Exchange",
    [5] = "Identification",
    [8] = "Hash",
    [10] = "Nonce",
    [11] = "Notification",
    [12] = "Delete",
    [13] = "Vendor ID",
}

-- ISAKMP Domain of Interpretation (IANA isakmp-registry)
local DOIS = { [0] = "ISAKMP", [1] = "IPsec", [2] = "GDOI" }

local RANGES = base.DEC + base.RANGE_STRING

local f = {
    type = ProtoField.uint8("kink4430.type", "Type", RANGES, TYPES),
    version = ProtoField.uint8("kink4430.version", "Major version", base.DEC, nil, 0xf0),
    reserved = ProtoField.uint8("kink4430.reserved", "Reserved", base.HEX, nil, 0x0f),
    length = ProtoField.uint16("kink4430.length", "Length", base.DEC),
    doi = ProtoField.uint32("kink4430.doi", "Domain of interpretation", base.DEC, DOIS),
    xid = ProtoField.uint32("kink4430.xid", "Transaction ID", base.HEX),
    next = ProtoField.uint8("kink4430.nextpayload", "First payload", RANGES, PAYLOADS),
    ackreq = ProtoField.bool("kink4430.ackreq", "ACKREQ", 8, { "ACK required", "No ACK required" }, 0x80),
    reserved2 = ProtoField.uint8("kink4430.reserved2", "Reserved", base.HEX, nil, 0x7f),
    cksumlen = ProtoField.uint16("kink4430.cksumlen", "Checksum length", base.DEC),
    cksum = ProtoField.bytes("kink4430.cksum", "Checksum"),
    padding = ProtoField.bytes("kink4430.padding", "Padding"),
    trailing = ProtoField.bytes("kink4430.trailing", "Octets behind the message"),
    data = ProtoField.bytes("kink4430.data", "Octets not read"),
    payload = ProtoField.none("kink4430.payload", "Payload"),
    payload_type = ProtoField.uint8("kink4430.payload.type", "Payload type", RANGES, PAYLOADS),
    payload_next = ProtoField.uint8("kink4430.payload.next", "Next payload", RANGES, PAYLOADS),
    payload_reserved = ProtoField.uint8("kink4430.payload.reserved", "Reserved", base.HEX),
    payload_length = ProtoField.uint16("kink4430.payload.length", "Payload length", base.DEC),
    epoch = ProtoField.uint32("kink4430.epoch", "EPOCH", base.DEC),
    epoch_time = ProtoField.absolute_time("kink4430.epoch.time", "EPOCH as a time", base.UTC),
    princname = ProtoField.string("kink4430.princname", "Principal name"),
    isakmp_next = ProtoField.uint8("kink4430.isakmp.nextpayload", "First Quick Mode payload", base.DEC, QUICK_MODE),
    isakmp_major = ProtoField.uint8("kink4430.isakmp.qmmaj", "Quick Mode major version", base.DEC, nil, 0xf0),
    isakmp_minor = ProtoField.uint8("kink4430.isakmp.qmmin", "Quick Mode minor version", base.DEC, nil, 0x0f),
    isakmp_reserved = ProtoField.uint16("kink4430.isakmp.reserved", "Reserved", base.HEX),
    encrypted = ProtoField.bytes("kink4430.encrypted", "Encrypted octets"),
    error = ProtoField.uint32("kink4430.error", "Error code", RANGES, ERRORS),
}
for _, field in pairs(f) do
    table.insert(kink.fields, field)
end

local e = {
    short = ProtoExpert.new("kink4430.short", "No room for a KINK header", expert.group.MALFORMED, expert.severity.ERROR),
    length = ProtoExpert.new("kink4430.length.bad", "A length that cannot be", expert.group.MALFORMED, expert.severity.ERROR),
    chain = ProtoExpert.new("kink4430.chain.bad", "A chain of payloads that cannot be", expert.group.MALFORMED, expert.severity.ERROR),
    cut = ProtoExpert.new("kink4430.cut", "Cut off by the capture", expert.group.UNDECODED, expert.severity.NOTE),
    version = ProtoExpert.new("kink4430.version.unknown", "Not version 1: the rest is not read", expert.group.UNDECODED, expert.severity.WARN),
    doi = ProtoExpert.new("kink4430.doi.unknown", "Not the IPsec DOI", expert.group.UNDECODED, expert.severity.WARN),
    unknown = ProtoExpert.new("kink4430.unknown", "A number that RFC 4430 does not assign", expert.group.UNDECODED, expert.severity.WARN),
    reserved = ProtoExpert.new("kink4430.reserved.set", "Reserved bits are not zero", expert.group.PROTOCOL, expert.severity.NOTE),
    padding = ProtoExpert.new("kink4430.padding.set", "Padding is not zero", expert.group.PROTOCOL, expert.severity.NOTE),
    align = ProtoExpert.new("kink4430.cksum.unaligned", "The checksum is not aligned to 4 octets", expert.group.MALFORMED, expert.severity.ERROR),
    trailing = ProtoExpert.new("kink4430.trailing.present", "Octets behind the message", expert.group.PROTOCOL, expert.severity.NOTE),
    unprotected = ProtoExpert.new("kink4430.unauthenticated", "No checksum: unauthenticated", expert.group.SECURITY, expert.severity.NOTE),
    clear = ProtoExpert.new("kink4430.isakmp.clear", "KINK_ISAKMP outside KINK_ENCRYPT", expert.group.SECURITY, expert.severity.NOTE),
    qmversion = ProtoExpert.new("kink4430.isakmp.version", "Not Quick Mode 1.0", expert.group.UNDECODED, expert.severity.WARN),
    closed = ProtoExpert.new("kink4430.closed", "Encrypted with the ticket's session key: see kinkctl decode --keytab", expert.group.DECRYPTION, expert.severity.CHAT),
    error = ProtoExpert.new("kink4430.error.code", "KINK_ERROR", expert.group.RESPONSE_CODE, expert.severity.NOTE),
    other = ProtoExpert.new("kink4430.handed", "The built-in dissector did not read it", expert.group.MALFORMED, expert.severity.WARN),
}
for _, info in pairs(e) do
    table.insert(kink.experts, info)
end

local function name_of(ranges, number)
    for _, range in ipairs(ranges) do
        if number >= range[1] and number <= range[2] then
            local name = range[3]
            return range[1] == range[2] and name or string.format("%s %d", name, number)
        end
    end
    return tostring(number)
end

-- RFC 4430 assigns it: one number, one name.
local function assigned(ranges, number)
    local name = name_of(ranges, number)
    return name ~= "RESERVED" and not name:find(" ")
end

local function complain(item, info, format, ...)
    if format then
        item:add_proto_expert_info(info, string.format(format, ...))
    else
        item:add_proto_expert_info(info)
    end
end

local function add_reserved(tree, field, range, value)
    local item = tree:add(field, range)
    if value ~= 0 then
        complain(item, e.reserved)
    end
end

-- The octets [from, to) that are in the capture, or nil.
local function available(tvb, from, to)
    to = math.min(to, tvb:len())
    if from < to then
        return tvb(from, to - from)
    end
end

local function add_octets(tree, field, tvb, from, to)
    local range = available(tvb, from, to)
    if range then
        return tree:add(field, range)
    end
end

local function add_padding(tree, tvb, from, to)
    local item = add_octets(tree, f.padding, tvb, from, to)
    if item and available(tvb, from, to):bytes():tohex():find("[^0]") then
        complain(item, e.padding)
    end
end

-- The dissectors Wireshark has on these ports. Kerberos has no name to be asked for by.
local BUILT_IN = { kerberos = 88, isakmp = 500 }
for name, port in pairs(BUILT_IN) do
    BUILT_IN[name] = DissectorTable.get("udp.port"):get_dissector(port)
end

-- Gives octets to a dissector of Wireshark's own; it may fail in any way.
local function hand_over(name, tvb, pinfo, tree)
    local dissector = BUILT_IN[name]
    local well, read = pcall(function()
        return dissector:call(tvb, pinfo, tree)
    end)
    if not well or read == 0 then
        complain(tree, e.other, "The built-in dissector %s did not read it", name)
    end
end

local function kerberos(m, tree, from, to)
    local range = available(m.tvb, from, to)
    if not range then
        complain(tree, e.length, "No room for a Kerberos message")
        return
    end
    if m.tvb:len() < to then
        tree:add(f.data, range)
        return
    end
    hand_over("kerberos", range:tvb(), m.pinfo, tree)
end

-- The fixed part of a payload's value, or nil with a complaint.
local function fixed(m, tree, from, to, octets)
    if to - from < octets then
        complain(tree, e.length, "No room for the %d octets this payload begins with", octets)
        add_octets(tree, f.data, m.tvb, from, to)
    elseif m.tvb:len() < from + octets then
        add_octets(tree, f.data, m.tvb, from, to)
    else
        return m.tvb(from, octets)
    end
end

-- §4.2.1, §4.2.2
local function with_epoch(m, tree, from, to)
    local range = fixed(m, tree, from, to, 4)
    if range then
        tree:add(f.epoch, range)
        tree:add(f.epoch_time, range, NSTime.new(range:uint(), 0)):set_generated()
        kerberos(m, tree, from + 4, to)
    end
end

-- §4.2.4
local function principal(m, tree, from, to)
    local range = available(m.tvb, from, to)
    if range then
        tree:add_packet_field(f.princname, range, ENC_UTF_8)
    elseif from == to then
        complain(tree, e.length, "No room for a principal name")
    end
end

-- Whether a chain of ISAKMP payloads (RFC 2408 §3.2) keeps within the octets that are there. The
-- built-in dissector trips over a Security Association without its situation (RFC 2407 §4.6.1).
local function sound(kind, octets)
    local from = 0
    while kind ~= 0 do
        local left = octets:len() - from
        if left < 4 then
            return false
        end
        local length = octets:get_index(from + 2) * 256 + octets:get_index(from + 3)
        if length < (kind == 1 and 12 or 4) or length > left then
            return false
        end
        kind, from = octets:get_index(from), from + length
    end
    return true
end

-- §4.2.6. ISAKMP payloads are read by the built-in dissector behind an ISAKMP header, which KINK
-- has not: one is made up, with the XID as message id.
local function isakmp(m, tree, from, to)
    complain(tree, e.clear)
    local range = fixed(m, tree, from, to, 4)
    if not range then
        return
    end
    local first, version = range(0, 1):uint(), range(1, 1):uint()
    tree:add(f.isakmp_next, range(0, 1))
    local item = tree:add(f.isakmp_major, range(1, 1))
    tree:add(f.isakmp_minor, range(1, 1))
    add_reserved(tree, f.isakmp_reserved, range(2, 2), range(2, 2):uint())
    local body = available(m.tvb, from + 4, to)
    if version ~= 0x10 then
        complain(item, e.qmversion)
    end
    if not body then
        return
    end
    local octets = body:bytes()
    if version ~= 0x10 or m.doi ~= DOI_IPSEC or m.tvb:len() < to then
        tree:add(f.data, body)
        return
    end
    if not sound(first, octets) then
        complain(tree, e.length, "A Quick Mode payload is too short or too long")
        tree:add(f.data, body)
        return
    end
    -- RFC 2408 §3.1: cookies, next payload, version 1.0, Quick Mode, no flags, message id, length
    local header = string.format("%s%02x102000%08x%08x", string.rep("00", 16), first, m.xid, 28 + body:len())
    local whole = ByteArray.new(header)
    whole:append(octets)
    local inner = tree:add(kink, body, "Quick Mode payloads, behind an ISAKMP header made up to show them")
    hand_over("isakmp", whole:tvb("Quick Mode payloads"), m.pinfo, inner)
end

-- §4.2.7
local function encrypted(m, tree, from, to)
    local item = add_octets(tree, f.encrypted, m.tvb, from, to)
    if item then
        complain(item, e.closed)
    elseif from == to then
        complain(tree, e.length, "No room for encrypted octets")
    end
end

-- §4.2.8
local function failure(m, tree, from, to)
    local range = fixed(m, tree, from, to, 4)
    if not range then
        return
    end
    local item = tree:add(f.error, range)
    m.detail = name_of(ERRORS, range:uint())
    complain(item, e.error, "%s", m.detail)
    if to > from + 4 then
        complain(tree, e.length, "Octets behind the error code")
        add_octets(tree, f.data, m.tvb, from + 4, to)
    end
end

local READERS = {
    [AP_REQ] = with_epoch,
    [AP_REP] = with_epoch,
    [KRB_ERROR] = kerberos,
    [TGT_REQ] = principal,
    [TGT_REP] = kerberos,
    [ISAKMP] = isakmp,
    [ENCRYPT] = encrypted,
    [ERROR] = failure,
}

-- One payload at `from`, which ends before `to`: its successor's type and place, or nil where the
-- chain breaks.
local function read_payload(m, root, kind, from, to)
    if to - from < PAYLOAD_HEADER then
        complain(root, e.chain, "No room for the payload %s", name_of(PAYLOADS, kind))
        return
    end
    if m.tvb:len() < from + PAYLOAD_HEADER then
        return
    end
    local head = m.tvb(from, PAYLOAD_HEADER)
    local following, length = head(0, 1):uint(), head(2, 2):uint()
    local ends = from + length
    local bad = length < PAYLOAD_HEADER or ends > to
    local name = name_of(PAYLOADS, kind)
    local tree = root:add(f.payload, available(m.tvb, from, bad and to or ends))
    tree:set_text(string.format("Payload: %s, %d octets", name, length))
    local item = tree:add(f.payload_type, kind):set_generated()
    if not assigned(PAYLOADS, kind) then
        complain(item, e.unknown)
    end
    tree:add(f.payload_next, head(0, 1))
    add_reserved(tree, f.payload_reserved, head(1, 1), head(1, 1):uint())
    item = tree:add(f.payload_length, head(2, 2))
    table.insert(m.names, (name:gsub("^KINK_", "")))
    if bad then
        complain(item, e.length, "Payload length %d, where 4 to %d is possible", length, to - from)
        add_octets(tree, f.data, m.tvb, from + PAYLOAD_HEADER, to)
        return
    end
    local read = READERS[kind]
    if read then
        read(m, tree, from + PAYLOAD_HEADER, ends)
    else
        add_octets(tree, f.data, m.tvb, from + PAYLOAD_HEADER, ends)
    end
    if kind == ENCRYPT and following ~= DONE then
        complain(tree, e.chain, "KINK_ENCRYPT is not the last payload")
    end
    return following, ends
end

-- The chain of payloads in [HEADER, to): §4.1 aligns each to 4 octets.
local function read_chain(m, root, kind, to)
    local from = HEADER
    for _ = 1, MAX_PAYLOADS do
        if kind == DONE then
            break
        end
        local following, ends = read_payload(m, root, kind, from, to)
        if not following then
            return
        end
        kind, from = following, math.min(ends + -ends % 4, to)
        add_padding(root, m.tvb, ends, from)
    end
    if kind ~= DONE then
        complain(root, e.chain, "More than %d payloads: the rest is not read", MAX_PAYLOADS)
        add_octets(root, f.data, m.tvb, from, to)
    elseif from < to then
        complain(root, e.chain, "Octets behind the last payload")
        add_octets(root, f.data, m.tvb, from, to)
    end
end

-- The header (§4); gives what the rest depends on.
local function read_header(m, root)
    local head = m.tvb(0, HEADER)
    m.type, m.doi, m.xid = head(0, 1):uint(), head(4, 4):uint(), head(8, 4):uint()
    m.version = head(1, 1):bitfield(0, 4)
    m.ackreq = head(13, 1):bitfield(0, 1) == 1
    local length, cksumlen = head(2, 2):uint(), head(14, 2):uint()
    local item = root:add(f.type, head(0, 1))
    if not assigned(TYPES, m.type) then
        complain(item, e.unknown)
    end
    item = root:add(f.version, head(1, 1))
    if m.version ~= VERSION then
        complain(item, e.version)
    end
    add_reserved(root, f.reserved, head(1, 1), head(1, 1):bitfield(4, 4))
    local length_item = root:add(f.length, head(2, 2))
    item = root:add(f.doi, head(4, 4))
    if m.doi ~= DOI_IPSEC then
        complain(item, e.doi)
    end
    root:add(f.xid, head(8, 4))
    root:add(f.next, head(12, 1))
    root:add(f.ackreq, head(13, 1))
    add_reserved(root, f.reserved2, head(13, 1), head(13, 1):bitfield(1, 7))
    local cksumlen_item = root:add(f.cksumlen, head(14, 2))
    return head(12, 1):uint(), length, length_item, cksumlen, cksumlen_item
end

local function read_message(m, root)
    local first, length, length_item, cksumlen, cksumlen_item = read_header(m, root)
    local octets = m.tvb:reported_len()
    if m.version ~= VERSION then
        add_octets(root, f.data, m.tvb, HEADER, octets)
        return
    end
    local ends = length
    if length < HEADER or length > octets then
        complain(length_item, e.length, "Length %d, where %d to %d is possible", length, HEADER, octets)
        ends = octets
    end
    local signed = ends - cksumlen
    if signed < HEADER then
        complain(cksumlen_item, e.length, "Checksum length %d, where %d is the most possible", cksumlen, ends - HEADER)
        signed = ends
    elseif cksumlen == 0 then
        complain(cksumlen_item, e.unprotected)
    elseif signed % 4 ~= 0 then
        complain(cksumlen_item, e.align)
    end
    read_chain(m, root, first, signed)
    add_octets(root, f.cksum, m.tvb, signed, ends)
    local behind = add_octets(root, f.trailing, m.tvb, ends, octets)
    if behind then
        complain(behind, e.trailing)
    end
end

local function summary(m)
    local text = string.format("%s XID 0x%08x", name_of(TYPES, m.type), m.xid)
    if m.ackreq then
        text = text .. " ACKREQ"
    end
    if #m.names > 0 then
        local shown = table.concat(m.names, ", ", 1, math.min(#m.names, 8))
        text = text .. ": " .. shown .. (#m.names > 8 and ", ..." or "")
    end
    return m.detail and text .. " (" .. m.detail .. ")" or text
end

function kink.dissector(tvb, pinfo, tree)
    local m = { tvb = tvb, pinfo = pinfo, names = {} }
    local root = tree:add(kink, tvb())
    local info
    if tvb:len() < HEADER then
        complain(root, tvb:reported_len() < HEADER and e.short or e.cut)
        add_octets(root, f.data, tvb, 0, tvb:len())
        info = "No KINK message"
    else
        if tvb:len() < tvb:reported_len() then
            complain(root, e.cut)
        end
        read_message(m, root)
        info = summary(m)
        root:append_text(", " .. info)
    end
    -- Last, since the dissectors called in between write theirs.
    pinfo.cols.protocol = "KINK"
    pinfo.cols.info = info
    return tvb:len()
end

local ports = DissectorTable.get("udp.port")
local builtin = ports:get_dissector(KINK_PORT)
if builtin then
    ports:remove(KINK_PORT, builtin)
end
ports:add(KINK_PORT, kink)
