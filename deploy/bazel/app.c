#include <stdio.h>

int main(void)
{
	puts("an image of one program");
	return 0;
}
