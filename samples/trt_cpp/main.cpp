// doge_generate ENGINE PLUGIN COUNT ID...: prints the COUNT tokens that follow the ids, greedily. PLUGIN is - for an
// engine without plugins.
#include <cstdlib>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "decoder.h"

int main(int count, char** arguments) {
    if (count < 5) {
        std::cerr << "usage: doge_generate ENGINE PLUGIN|- COUNT ID...\n";
        return EXIT_FAILURE;
    }
    try {
        const std::string plugin = arguments[2];
        doge_sample::Decoder decoder(arguments[1], plugin == "-" ? "" : plugin);
        const int new_tokens = std::stoi(arguments[3]);
        std::vector<int32_t> tokens;
        for (int index = 4; index < count; ++index) {
            tokens.push_back(std::stoi(arguments[index]));
        }
        for (int step = 0; step < new_tokens; ++step) {
            tokens = {decoder.forward(tokens)};
            std::cout << tokens.front() << (step + 1 < new_tokens ? ' ' : '\n') << std::flush;
        }
    } catch (const std::exception& error) {
        std::cerr << "doge_generate: " << error.what() << '\n';
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
