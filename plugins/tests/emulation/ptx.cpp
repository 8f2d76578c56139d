#include "ptx.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <cstring>
#include <optional>

namespace doge::emulation {
namespace {

const Operations& operations() {
    static const Operations all = [] {
        Operations found;
        add_arithmetic(found);
        add_warp_operations(found);
        return found;
    }();
    return all;
}

std::string trimmed(const std::string& text) {
    const auto begin = text.find_first_not_of(" \t\r\n");
    if (begin == std::string::npos) return "";
    return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

// Splits at `separator` outside of brackets; empty parts are left out.
std::vector<std::string> split(const std::string& text, char separator) {
    std::vector<std::string> parts;
    std::string part;
    int depth = 0;
    for (char c : text) {
        depth += (c == '{' || c == '[' || c == '(') - (c == '}' || c == ']' || c == ')');
        if (c == separator && depth == 0) {
            if (!trimmed(part).empty()) parts.push_back(trimmed(part));
            part.clear();
        } else {
            part += c;
        }
    }
    if (!trimmed(part).empty()) parts.push_back(trimmed(part));
    return parts;
}

std::size_t bytes_of(const std::string& type) {
    const std::string digits = type.substr(type.find_first_of("0123456789"));
    return static_cast<std::size_t>(std::stoi(digits)) / 8;
}

char width_of(std::size_t bytes) { return bytes <= 2 ? 'h' : bytes == 4 ? 'w' : 'l'; }

// Reads the body of one kernel.
class Reader {
  public:
    explicit Reader(Kernel& kernel) : kernel_(kernel) {}

    void parameter(const std::string& declaration) {
        const std::size_t bracket = declaration.find('[');
        const auto words = split(declaration.substr(0, bracket), ' ');
        std::string type;
        for (const std::string& word : words) {
            if (word.size() > 2 && word[0] == '.' && std::isdigit(word[2])) type = word.substr(1);
        }
        std::size_t bytes = bytes_of(type);
        if (bracket != std::string::npos) bytes *= std::stoul(declaration.substr(bracket + 1));
        parameters_.push_back(words.back());
        kernel_.parameter_bytes.push_back(static_cast<u32>(bytes));
    }

    void statement(const std::string& text, int line) {
        line_ = line;
        if (text.rfind(".reg", 0) == 0) return declare(text);
        if (text[0] == '.') return;  // .pragma and the like
        instruction(text);
    }
    void label(const std::string& name) { labels_[name] = static_cast<u32>(kernel_.code.size()); }

    void finish() {
        for (const auto& [index, name] : jumps_) {
            if (!labels_.count(name)) fail("no label " + name);
            kernel_.code[index].target = labels_[name];
        }
        kernel_.code.push_back({Instruction::Kind::Exit});
    }

  private:
    struct Registers {
        char width;
        u32 first, count;
    };

    [[noreturn]] void fail(const std::string& what) const {
        throw KernelError(kernel_.name + ": cannot be read: PTX line " + std::to_string(line_) + ": " + what);
    }

    void declare(const std::string& text) {  // .reg .b32 %r<12>
        const auto words = split(text, ' ');
        const std::string type = words.at(1).substr(1), name = words.at(2);
        const std::size_t bracket = name.find('<');
        if (bracket == std::string::npos) fail("a register without a number: " + text);
        const u32 count = static_cast<u32>(std::stoul(name.substr(bracket + 1)));
        const char width = type == "pred" ? 'p' : width_of(bytes_of(type));
        registers_[name.substr(1, bracket - 1)] = {width, width == 'p' ? kernel_.predicates : kernel_.slots, count};
        if (width == 'p') {
            kernel_.predicates += count;
        } else {
            kernel_.slots += count * (width == 'l' ? 2 : 1);
        }
    }

    const Registers* registers_of(const std::string& text) const {
        if (text.size() < 3 || text[0] != '%') return nullptr;
        const std::size_t digits = text.find_first_of("0123456789");
        if (digits == std::string::npos) return nullptr;
        const auto found = registers_.find(text.substr(1, digits - 1));
        return found == registers_.end() ? nullptr : &found->second;
    }
    char width_of_register(const std::string& text) const {
        const Registers* registers = registers_of(text);
        if (!registers) fail(text + " is no register");
        return registers->width;
    }

    u32 preset(Preset::Source source, u64 value, char width) {
        for (const Preset& known : kernel_.presets) {
            if (known.source == source && known.value == value && known.width == width) return known.slot;
        }
        const u32 slot = kernel_.slots;
        kernel_.slots += width == 'l' ? 2 : 1;
        kernel_.presets.push_back({source, value, slot, width});
        return slot;
    }

    std::optional<u32> special(const std::string& text, char width) {
        static const std::map<std::string, Preset::Source> vectors = {{"%ctaid", Preset::Source::Block},
                                                                      {"%ntid", Preset::Source::BlockSize},
                                                                      {"%nctaid", Preset::Source::GridSize}};
        static const Preset::Source threads[] = {Preset::Source::ThreadX, Preset::Source::ThreadY,
                                                 Preset::Source::ThreadZ};
        if (text == "%laneid") return preset(Preset::Source::Lane, 0, width);
        const std::size_t dot = text.find('.');
        if (dot == std::string::npos || dot + 2 != text.size()) return {};
        const u64 axis = static_cast<u64>(text[dot + 1] - 'x');
        if (text.rfind("%tid.", 0) == 0) return preset(threads[axis], 0, width);
        const auto found = vectors.find(text.substr(0, dot));
        if (found == vectors.end()) return {};
        return preset(found->second, axis, width);
    }

    // The number of the register that holds an operand.
    u32 slot(const std::string& text, char width) {
        if (const Registers* registers = registers_of(text)) {
            const u32 number = static_cast<u32>(std::stoul(text.substr(text.find_first_of("0123456789"))));
            if (registers->width != width || number >= registers->count) fail(text + " is of another width");
            return registers->first + number * (width == 'l' ? 2 : 1);
        }
        if (width == 'p') {
            if (text != "0" && text != "1" && text != "-1") fail("no predicate: " + text);
            const bool value = text != "0";
            if (constant_predicate_[value] < 0) {
                constant_predicate_[value] = static_cast<s32>(kernel_.predicates++);
                kernel_.presets.push_back(
                    {Preset::Source::Constant, value ? ~u64{0} : 0, static_cast<u32>(constant_predicate_[value]), 'p'});
            }
            return static_cast<u32>(constant_predicate_[value]);
        }
        if (const auto found = special(text, width)) return *found;
        if (text.rfind("0f", 0) == 0 || text.rfind("0F", 0) == 0) {
            return preset(Preset::Source::Constant, std::stoull(text.substr(2), nullptr, 16), width);
        }
        if (std::isdigit(text[0]) || text[0] == '-') {
            const u64 value =
                text[0] == '-' ? static_cast<u64>(std::stoll(text, nullptr, 0)) : std::stoull(text, nullptr, 0);
            return preset(Preset::Source::Constant, value, width);
        }
        const auto found = std::find(parameters_.begin(), parameters_.end(), text);
        if (found != parameters_.end()) {
            return preset(Preset::Source::Parameter, static_cast<u64>(found - parameters_.begin()), width);
        }
        if (text.find("dynamic_shared") != std::string::npos) return preset(Preset::Source::Constant, 0, width);
        fail("no operand: " + text);
    }

    // "[%rd1+16]": the register, and the offset into the instruction.
    u32 address(const std::string& text, Instruction& made, char& width) {
        std::string inside = trimmed(text.substr(1, text.size() - 2));
        const std::size_t plus = inside.find('+');
        if (plus != std::string::npos) {
            made.offset = std::stoll(inside.substr(plus + 1));
            inside = trimmed(inside.substr(0, plus));
        }
        width = registers_of(inside) ? width_of_register(inside) : 'l';
        return slot(inside, width);
    }

    static std::vector<std::string> elements(const std::string& text) {
        return text[0] == '{' ? split(text.substr(1, text.size() - 2), ',') : std::vector<std::string>{text};
    }

    void instruction(const std::string& text) {
        Instruction made;
        made.line = line_;
        std::string rest = text;
        if (rest[0] == '@') {
            const std::size_t space = rest.find_first_of(" \t");
            made.guard_negated = rest[1] == '!';
            made.guard =
                static_cast<s32>(slot(rest.substr(made.guard_negated ? 2 : 1, space - 1 - made.guard_negated), 'p'));
            rest = trimmed(rest.substr(space));
        }
        const std::size_t space = std::min(rest.find_first_of(" \t"), rest.size());
        const std::string opcode = rest.substr(0, space);
        const auto arguments = split(trimmed(rest.substr(space)), ',');
        const auto parts = split(opcode, '.');
        const std::string& type = parts.back();
        char width = 'l';
        if (parts[0] == "bra") {
            made.kind = Instruction::Kind::Branch;
            jumps_.emplace_back(kernel_.code.size(), arguments.at(0));
        } else if (parts[0] == "ret" || parts[0] == "exit") {
            made.kind = Instruction::Kind::Exit;
        } else if (opcode == "bar.sync" && arguments.size() == 1) {
            made.kind = Instruction::Kind::Barrier;
        } else if (parts[0] == "membar" || parts[0] == "fence") {
            made.kind = Instruction::Kind::Visible;
            made.run = find_fence(type == "cta");
        } else if (parts[0] == "ld" || parts[0] == "st") {
            const bool loads = parts[0] == "ld";
            const auto data = elements(arguments.at(loads ? 0 : 1));
            made.operand[0] = address(arguments.at(loads ? 1 : 0), made, width);
            made.elements = static_cast<u32>(data.size());
            const char of_data = registers_of(data[0]) ? width_of_register(data[0]) : width_of(bytes_of(type));
            for (std::size_t n = 0; n < data.size(); ++n) made.operand[1 + n] = slot(data[n], of_data);
            const Access access{parts.at(1), type, of_data, width};
            made.run = loads ? find_load(access) : find_store(access);
        } else if (parts[0] == "atom" || parts[0] == "red") {
            const std::size_t at = parts[0] == "atom";
            const char of_data = width_of(bytes_of(type));
            made.kind = Instruction::Kind::Visible;
            made.operand[0] = address(arguments.at(at), made, width);
            made.operand[1] = at ? slot(arguments[0], of_data) : preset(Preset::Source::Constant, 0xDEAD, of_data);
            for (std::size_t n = at + 1; n < arguments.size(); ++n)
                made.operand[1 + n - at] = slot(arguments[n], of_data);
            made.run = find_atomic({parts.at(1), type, of_data, width, parts.at(2)});
        } else if (opcode.rfind("cp.async.c", 0) == 0 && parts.at(2) != "commit_group") {
            char global = 'l';
            made.operand[0] = address(arguments.at(0), made, width);
            if (made.offset == 0 && width == 'w') made.run = find_async_copy();
            made.operand[1] = address(arguments.at(1), made, global);
            made.elements = static_cast<u32>(std::stoul(arguments.at(2)));
            made.operand[2] = slot(arguments.size() > 3 ? arguments[3] : arguments[2], 'w');
        } else if (opcode == "cp.async.commit_group") {
            made.run = find_async_commit();
        } else if (opcode == "cp.async.wait_group" || opcode == "cp.async.wait_all") {
            made.offset = arguments.empty() ? 0 : std::stoll(arguments[0]);
            made.run = find_async_wait();
        } else {
            plain(opcode, arguments, made);
        }
        const bool complete = made.run || made.kind == Instruction::Kind::Branch ||
                              made.kind == Instruction::Kind::Barrier || made.kind == Instruction::Kind::Exit;
        if (!complete) fail("the emulator does not know " + text);
        kernel_.code.push_back(made);
    }

    // Whatever the table of operations has, its operands as they come.
    void plain(const std::string& opcode, const std::vector<std::string>& arguments, Instruction& made) {
        std::string name = opcode;
        if (opcode.rfind("mov.b", 0) == 0 && arguments.at(0)[0] == '{') name += ".unpack";
        if (opcode.rfind("mov.b", 0) == 0 && arguments.at(1)[0] == '{') name += ".pack";
        std::vector<std::string> operands;
        for (const std::string& argument : arguments) {
            for (const std::string& element : elements(argument)) {
                const std::size_t bar = element.find('|');
                operands.push_back(element.substr(0, bar));
                if (bar != std::string::npos) operands.push_back(element.substr(bar + 1));
            }
        }
        const bool moves_bits =
            name.rfind("selp.", 0) == 0 || (name.rfind("mov.", 0) == 0 && name.find("pack") == std::string::npos);
        if (moves_bits) name = name.substr(0, name.find('.')) + "." + width_of_register(operands[0]);
        const auto found = operations().find(name);
        if (found == operations().end()) return;
        const Operation& operation = found->second;
        if (operation.layout.size() == operands.size() + 1 && operation.layout[1] == 'p') {
            operands.insert(operands.begin() + 1, "");  // shfl without its predicate
        }
        if (operation.layout.size() != operands.size()) fail("operands of " + opcode);
        for (std::size_t n = 0; n < operands.size(); ++n) {
            if (operands[n].empty()) {
                made.operand[n] = kernel_.predicates++;
            } else if (operands[n][0] == '[') {
                char width = 0;
                made.operand[n] = address(operands[n], made, width);
                if (width != operation.layout[n]) fail("an address of another width");
            } else {
                made.operand[n] = slot(operands[n], operation.layout[n]);
            }
        }
        made.run = operation.run;
        made.kind = operation.kind;
        made.mask_at = operation.mask_at;
    }

    Kernel& kernel_;
    int line_ = 0;
    std::vector<std::string> parameters_;
    std::map<std::string, Registers> registers_;
    s32 constant_predicate_[2] = {-1, -1};
    std::map<std::string, u32> labels_;
    std::vector<std::pair<std::size_t, std::string>> jumps_;
};

// The body of a kernel from its name to its last brace.
void read(const std::string& text, std::size_t begin, std::size_t end, int line, Kernel& kernel) {
    Reader reader(kernel);
    const std::size_t open = text.find('(', begin), brace = text.find('{', begin);
    std::size_t at = brace;
    if (open < brace) {
        const std::size_t close = text.find(')', open);
        for (const std::string& parameter : split(text.substr(open + 1, close - open - 1), ',')) {
            reader.parameter(parameter);
        }
    }
    line += static_cast<int>(std::count(text.begin() + static_cast<std::ptrdiff_t>(begin),
                                        text.begin() + static_cast<std::ptrdiff_t>(brace), '\n'));
    std::string statement;
    int starts = line;
    for (++at; at < end; ++at) {
        const char c = text[at];
        const bool blank = statement.empty();
        if (c == '\n') ++line;
        if (c == '/' && text[at + 1] == '/') {
            at = text.find('\n', at) - 1;
        } else if (blank && (std::isspace(static_cast<unsigned char>(c)) || c == '{' || c == '}')) {
            continue;  // braces of a scope
        } else if (c == ';') {
            reader.statement(trimmed(statement), starts);
            statement.clear();
        } else if (c == ':' && statement[0] == '$') {
            reader.label(statement);
            statement.clear();
        } else {
            if (blank) starts = line;
            statement += c == '\n' || c == '\t' ? ' ' : c;
        }
    }
    reader.finish();
}

}  // namespace

Module::Module(std::string text) : text_(std::move(text)) {
    int line = 1;
    std::size_t counted = 0;
    for (std::size_t at = text_.find(".entry "); at != std::string::npos; at = text_.find(".entry ", at)) {
        const std::size_t begin = at + std::strlen(".entry ");
        const std::size_t next = text_.find(".entry ", begin);
        line += static_cast<int>(std::count(text_.begin() + static_cast<std::ptrdiff_t>(counted),
                                            text_.begin() + static_cast<std::ptrdiff_t>(begin), '\n'));
        counted = begin;
        const std::string name = trimmed(text_.substr(begin, text_.find_first_of("( \n", begin) - begin));
        const std::size_t last = text_.rfind("\n}", next == std::string::npos ? text_.size() : next);
        texts_[name] = {begin, last + 1, line};
        at = begin;
    }
}

const Kernel& Module::kernel(const std::string& name) {
    std::unique_ptr<Kernel>& known = kernels_[name];
    if (!known) {
        auto kernel = std::make_unique<Kernel>();
        kernel->name = name;
        const Range range = texts_.at(name);
        read(text_, range.begin, range.end, range.line, *kernel);
        known = std::move(kernel);
    }
    return *known;
}

std::vector<std::string> Module::names() const {
    std::vector<std::string> found;
    for (const auto& entry : texts_) found.push_back(entry.first);
    return found;
}

}  // namespace doge::emulation
