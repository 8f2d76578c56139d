// doge FOLDER [PRECISION] [MAX_NEW_TOKENS] < IDS: writes the ids that follow, each on its line as soon as it is known.
#include <cstdlib>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "doge.h"

int main(int count, char** arguments) {
    if (count < 2 || count > 4) {
        std::cerr << "error: give a folder: doge FOLDER [PRECISION] [MAX_NEW_TOKENS] < IDS\n";
        return 2;
    }
    try {
        const std::string limit = count > 3 ? arguments[3] : "100";
        if (limit.empty() || limit.size() > 9 || limit.find_first_not_of("0123456789") != std::string::npos) {
            throw std::invalid_argument("MAX_NEW_TOKENS is " + limit + ", not a number");
        }
        doge_sample::Doge doge(doge_sample::find_model(arguments[1], count > 2 ? arguments[2] : "fp32"));
        std::vector<int64_t> prompt;
        for (int64_t id = 0; std::cin >> id;) prompt.push_back(id);
        if (!std::cin.eof()) throw std::invalid_argument("the input holds something else than token ids");
        doge.generate(prompt, std::stoll(limit), [](int64_t id) {
            std::cout << id << std::endl;
            return static_cast<bool>(std::cout);
        });
    } catch (const std::invalid_argument& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 2;
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return EXIT_FAILURE;
    }
    return EXIT_SUCCESS;
}
